"""A dense index for the environment `search`: passages and queries as vectors, and the nearest passages first.

    lightrft train facts --environment.options index examples/dense_index.py:Dense

Here the vectors come from latent semantic analysis (pip install scikit-learn), which needs no model. For an encoder put its
embeddings in place of `fit_transform` and `transform`.
"""

from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import normalize


class Dense:
    def __init__(self, texts, dimensions=256):
        letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True)
        self.embed = make_pipeline(letters, TruncatedSVD(min(dimensions, len(texts) - 1), random_state=0))
        self.vectors = normalize(self.embed.fit_transform(texts))

    def best(self, query, top):
        """Places of the nearest passages, the nearest first."""
        near = self.vectors @ normalize(self.embed.transform([query]))[0]
        return (-near).argsort(kind="stable")[:top].tolist()
