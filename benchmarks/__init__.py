"""Speed against the frozen model and against a bare loop: JSON lines on standard output, a table on standard error."""
