"""It is responsible for what every command does with a terminal: paths and numbers in, words and verdicts out."""
