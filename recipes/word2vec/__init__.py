"""word2vec as a two-tower run: README.md says what is claimed and what was measured."""
