"""Data, training, compared methods, evaluation and benchmark: no part of the product imports it."""
