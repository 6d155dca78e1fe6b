"""Instruction following on Alpaca, or on any file of its layout."""
