"""One command for a day with a GPU: `python -m edge_prm_bench.gpu_day -o DIR`. See docs/benchmarking.md."""
