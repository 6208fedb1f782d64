"""Command line: one parser, one file per verb."""
