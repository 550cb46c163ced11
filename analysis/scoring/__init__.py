"""What models say of texts: models, batches, statistics of each token, the store that keeps them.

``scores`` reads the store without torch; all else here imports it.
"""
