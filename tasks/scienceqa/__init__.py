"""ScienceQA: multiple-choice questions of school science, half of them with an image."""
