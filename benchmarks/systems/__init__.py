"""The systems that the benchmarks compare, one module for each origin: ours, the paper's equations, peft, litgpt."""
