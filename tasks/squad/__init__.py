"""SQuAD v1.1 and v2.0: questions about a paragraph, answered by a span of it or, in v2.0, by no answer."""
