"""Benchmarks: commands that compare two things in one run, in turn, and say what they found."""
