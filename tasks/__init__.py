"""One folder per task: its data, its prompts, its evaluation. No task imports another."""
