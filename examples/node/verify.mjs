// Compare the rewards of Node with those of Python: `node verify.mjs BUNDLE [EXPECTED.jsonl]`.
//
// The golden trajectories in the bundle's edge_prm.json carry the rewards that Python gave when it was exported.
// EXPECTED holds more of them, one JSON object a line: {"prompt": ..., "steps": [...], "rewards": [...]}.

import { readFile } from "node:fs/promises";
import { PRM } from "./prm.mjs";

const TOLERANCE = 1e-6;
const [folder, expected] = process.argv.slice(2);
if (!folder) {
  console.error("give a bundle folder: node verify.mjs prm-int8");
  process.exit(2);
}
const prm = await PRM.load(folder);
const trajectories = prm.manifest.golden.map(({ prompt, steps, bundle_rewards }) => ({ prompt, steps, rewards: bundle_rewards }));
if (expected) {
  const lines = (await readFile(expected, "utf8")).split("\n").filter(Boolean);
  trajectories.push(...lines.map((line) => JSON.parse(line)));
}

let worst = 0;
for (const { prompt, steps, rewards } of trajectories) {
  const oneShot = await prm.score(prompt, steps);
  worst = Math.max(worst, difference(oneShot, rewards));
  const { ids } = prm.encoder.encode(prompt, steps);
  console.log(`${steps.length} steps, ${ids.length} tokens: ${oneShot.map((reward) => reward.toFixed(4)).slice(0, 6).join(" ")}`);

  // The same text while it is being written. The first call forgets the steps, each later one adds the tokens of one.
  await prm.score(prompt, ["."]);
  for (let count = 1; count <= steps.length; count++) await prm.score(prompt, steps.slice(0, count));
  worst = Math.max(worst, difference(await prm.score(prompt, steps), rewards));
}
console.log(`${trajectories.length} trajectories; largest difference from Python ${worst.toExponential(1)} (limit ${TOLERANCE})`);
process.exit(worst <= TOLERANCE ? 0 : 1);

function difference(left, right) {
  if (left.length !== right.length) return Infinity;
  return Math.max(...left.map((value, index) => Math.abs(value - right[index])));
}
