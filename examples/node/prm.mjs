// An edge-prm ONNX bundle in Node: text -> token ids -> rewards. No Python, no torch.
//
//   const prm = await PRM.load("prm-int8");
//   await prm.score("What is 2 + 3 * 4?", ["3 * 4 = 12", "2 + 12 = 14"]); // -> [0.98, 0.97]
//
// It reads bundles of the `raw` input format (ReasonFlux-PRM: a sigmoid head). Text is tokenized and steps are placed as
// edge_prm/encode.py does it; the rules of the engine are those of edge_prm/backends/onnx/native.py. This short version
// does not verify the hashes of the bundle: `edge-prm check` does.

import { readFile } from "node:fs/promises";
import path from "node:path";
import { Tokenizer } from "@huggingface/tokenizers";
import * as ort from "onnxruntime-node";

const STEP_SEPARATOR = "\n\n";
const CHUNK_TOKENS = 256; // one run of the engine; longer runs need more memory and are not faster
const CAPACITY_STEP = 256;
const QUERY_BLOCK = 16; // divides the query block of the attention operator on every device
const FEWEST_READ = 2;

export class PRM {
  /** Load a bundle folder that `edge-prm export --int8` (or `--fp32`) wrote. */
  static async load(folder, { threads = 0 } = {}) {
    const [manifest, tokenizer] = await Promise.all(
      ["edge_prm.json", "tokenizer.json"].map(async (name) => JSON.parse(await readFile(path.join(folder, name), "utf8"))),
    );
    const engine = manifest.recipe.engine ?? manifest.backend; // bundles of format 2 and older call it `backend`
    if (engine !== "onnx" || manifest.input.format !== "raw") {
      throw new Error(`${folder} is for ${engine}, with ${manifest.input.format} input; give an ONNX bundle with raw input`);
    }
    const session = await ort.InferenceSession.create(path.join(folder, "model.onnx"), { intraOpNumThreads: threads });
    return new PRM(manifest, new StepEncoder(manifest, tokenizer), session);
  }

  constructor(manifest, encoder, session) {
    this.manifest = manifest;
    this.encoder = encoder;
    this.sequence = new Sequence(session, manifest);
    this.queue = Promise.resolve();
  }

  /** Return the reward of each step. Tokens that two calls in a row have in common at the start run once only, so
   * calling this again after each new step is the way to judge a text that is still being written. */
  score(prompt, steps) {
    const { ids, readAt } = this.encoder.encode(prompt, steps);
    // There is one KV cache, so calls take turns.
    const result = this.queue.then(() => this.sequence.rewards(ids, readAt));
    this.queue = result.catch(() => {});
    return result;
  }
}

/** Text -> token ids, and for each step the index of the token at which its reward is read. */
class StepEncoder {
  constructor(manifest, tokenizer) {
    // Text of the user is plain text: without this, a literal "<|im_end|>" in it would become that special token.
    const added = tokenizer.added_tokens.filter((token) => !token.special);
    this.tokenizer = new Tokenizer({ ...tokenizer, added_tokens: added, post_processor: null }, {});
    this.normalize = tokenizer.normalizer?.type === "NFC" ? (text) => text.normalize("NFC") : (text) => text;
    this.first = manifest.input.bos_id === null ? [] : [manifest.input.bos_id];
    this.contextLength = manifest.context_length;
  }

  encode(prompt, steps) {
    // The raw format: nothing between prompt and first step, a blank line between steps, nothing after the last one.
    let text = prompt;
    const ends = steps.map((step, index) => {
      const bare = step.replace(/^(\s*[\r\n])?/, "").replace(/[\r\n]+$/, "");
      if (!bare.trim()) throw new Error(`step ${index} is empty`);
      text += bare + (index < steps.length - 1 ? STEP_SEPARATOR : "");
      return Buffer.byteLength(this.normalize(text));
    });
    const { ids, tokens } = this.tokenizer.encode(text, { add_special_tokens: false });
    if (this.first.length + ids.length > this.contextLength) {
      throw new Error(`the text has ${ids.length} tokens and the context holds ${this.contextLength}`);
    }
    // A byte-level token has one character for each byte of the text. A step is read at the token that holds the last
    // byte of its separator. Looking for the separator's token id instead would be wrong: a tokenizer may join the
    // separator with the punctuation before it.
    const readAt = [];
    let bytes = 0;
    tokens.forEach((token, index) => {
      bytes += [...token].length;
      while (readAt.length < ends.length && ends[readAt.length] <= bytes) readAt.push(this.first.length + index);
    });
    return { ids: [...this.first, ...ids], readAt };
  }
}

/** One token sequence and its KV cache. */
class Sequence {
  constructor(session, manifest) {
    const { layers, kv_heads, head_dim } = manifest.architecture;
    this.session = session;
    this.contextLength = manifest.context_length;
    this.planes = kv_heads;
    this.width = head_dim;
    this.names = Array.from({ length: layers }, (_, layer) => [`key.${layer}`, `value.${layer}`]).flat();
    this.ids = []; // tokens that the cache holds
    this.known = new Map(); // index of a token -> its reward
    this.capacity = 0;
    this.cache = new Map();
  }

  async rewards(ids, readAt) {
    let common = 0;
    while (common < Math.min(ids.length, this.ids.length) && ids[common] === this.ids[common]) common++;
    for (const at of this.known.keys()) if (at >= common) this.known.delete(at);
    const missing = readAt.filter((at) => !this.known.has(at));
    if (missing.length) {
      const start = Math.min(common, missing[0]);
      const end = missing.at(-1) + 1; // nothing is read after it
      this.ids.length = start; // Forgetting tokens is a smaller offset: what lies after it in the cache is never read.
      this.reserve(end + 1);
      for (let at = start; at < end; at += CHUNK_TOKENS) {
        await this.run(ids.slice(at, Math.min(at + CHUNK_TOKENS, end)), missing);
      }
    }
    return readAt.map((at) => this.known.get(at));
  }

  async run(ids, missing) {
    const offset = this.ids.length;
    const wanted = missing.map((at) => at - offset).filter((at) => at >= 0 && at < ids.length);
    // ONNX Runtime multiplies a single row with another kernel, with other rounding, and its attention works through
    // the tokens of a run in blocks of a multiple of 16, so that the last block may be a single row. So a run never has
    // 1, 17, 33, ... tokens: one more is computed, and forgotten because the offset does not count it.
    const padded = ids.length % QUERY_BLOCK === 1 ? [...ids, ids.at(-1)] : ids;
    // For the same reason no run reads fewer than two positions.
    const read = [...wanted];
    while (read.length < FEWEST_READ) read.push(ids.length - 1);

    const feeds = {
      input_ids: new ort.Tensor("int64", BigInt64Array.from(padded, BigInt), [padded.length]),
      read_at: new ort.Tensor("int64", BigInt64Array.from(read, BigInt), [read.length]),
      offset: new ort.Tensor("int32", Int32Array.of(offset), [1]),
    };
    // The attention operator appends to the cache in place where its input and its output are the same buffer. `null`
    // lets the engine allocate the output.
    const fetches = { rewards: null };
    for (const [name, tensor] of this.cache) {
      feeds[`past_${name}`] = tensor;
      fetches[`present_${name}`] = tensor;
    }
    const { rewards } = await this.session.run(feeds, fetches);
    wanted.forEach((at, index) => this.known.set(offset + at, rewards.data[index]));
    this.ids.push(...ids);
  }

  /** Make room for `tokens`. The capacity doubles, so that a text that keeps growing is seldom copied. onnxruntime-node
   * copies every output once more on its way to JavaScript, so a cache of the full context from the start is slow. */
  reserve(tokens) {
    if (tokens <= this.capacity) return;
    const rounded = Math.ceil(tokens / CAPACITY_STEP) * CAPACITY_STEP;
    const capacity = Math.max(rounded, Math.min(2 * this.capacity, this.contextLength));
    for (const name of this.names) {
      const grown = new Float32Array(this.planes * capacity * this.width);
      const old = this.cache.get(name)?.data;
      for (let plane = 0; old && plane < this.planes; plane++) {
        const from = plane * this.capacity * this.width; // layout: [1, kv_heads, capacity, head_dim]
        grown.set(old.subarray(from, from + this.ids.length * this.width), plane * capacity * this.width);
      }
      this.cache.set(name, new ort.Tensor("float32", grown, [1, this.planes, capacity, this.width]));
    }
    this.capacity = capacity;
  }
}
