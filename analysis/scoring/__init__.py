"""Log-probabilities of texts: models, batches, statistics of each token, and the store of scores.

``scores`` reads the store without torch; all else here imports it.
"""
