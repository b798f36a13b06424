"""Texts into the space of the images, where the backbone is one of two towers."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from pyfeat._identity import Space
from pyfeat.backbones import Backbone
from pyfeat.extract._choice import Wish, on_engine
from pyfeat.extract._inputs import as_inputs
from pyfeat.extract._run import RunOptions, row_space
from pyfeat.extract._transform import rows_of
from pyfeat.store import FeatureStore


class TextTower:
    """What `FeatureExtractor` does with texts."""

    store: Any
    engine: str
    precision: str
    dtype: str
    batch_size: int | str
    deterministic: bool
    on_error: str
    progress: Any

    def _base(self) -> Backbone:
        raise NotImplementedError

    def transform_text(self, texts: Any) -> NDArray[Any]:
        """Return one row for each text, in the space of the images.

        Parameters
        ----------
        texts : sequence of str, UTF-8 bytes or path-like to text files
            A pandas or polars column is one too.

        Returns
        -------
        rows : ndarray of shape (n, d), dtype as asked for
            Of length 1, as the rows of images are: their inner product is the cosine by which the
            model compares images and texts. `n_truncated_` says how many texts were cut.

        Raises
        ------
        ValueError
            If the backbone has no text tower, or `layers` or `pooling` take the row from elsewhere
            than the output that both towers share.
        InputError
            If a text is empty and `on_error="raise"`.

        Notes
        -----
        Rows of texts are of a space of their own (see `get_text_space`): with a store given as a
        path they are kept beside those of the images, an open FeatureStore holds only the one space
        it was made for. The text tower runs on the engine and in the precision that were asked for;
        where these are "auto" or int8, in float32 by torch: a query of one text measures nothing.

        Examples
        --------
        >>> from pyfeat import FeatureExtractor
        >>> clip = FeatureExtractor("hf/openai/clip-vit-base-patch32")
        >>> images = clip.transform(["cat.jpg", "dog.jpg"])  # doctest: +SKIP
        >>> images @ clip.transform_text(["a photo of a dog"]).T  # doctest: +SKIP
        """
        tower = self._text_tower()
        space = self._text_space(tower)
        other = (
            isinstance(self.store, FeatureStore)
            and self.store.space.fingerprint != space.fingerprint
        )
        options = RunOptions(self.batch_size, self.deterministic, self.dtype)
        rows, self.n_truncated_ = rows_of(
            as_inputs(texts, "text"),
            tower,
            (None if other else self.store, space),
            options,
            raises=self.on_error == "raise",
            progress=self.progress,
        )
        return rows

    def get_text_space(self) -> Space:
        """Return what identifies the rows of `transform_text`.

        It names the same model in its part "joint" as the space of the images, and another tower:
        heads and indexes take rows of one space where they were fitted on the other.

        Returns
        -------
        space : Space

        Raises
        ------
        ValueError
            As `transform_text`.
        """
        return self._text_space(self._text_tower())

    def get_logit_scale(self) -> float:
        """Return what the model multiplies cosines with, before the softmax over texts.

        Returns
        -------
        scale : float

        Raises
        ------
        ValueError
            As `transform_text`.
        """
        joint = self._base().text_tower().joint
        if joint is None:
            raise ValueError("backbone must say how its towers are compared, got no joint space")
        return joint.logit_scale

    def _text_tower(self) -> Backbone:
        tower = self._base().text_tower()
        if "auto" in (self.engine, self.precision) or self.precision.startswith("int8"):
            return tower
        wish = Wish(self.engine, self.precision, 1.0, "exact")
        return on_engine(tower, wish, None)[0]

    def _text_space(self, tower: Backbone) -> Space:
        return row_space(tower, self.dtype, self.deterministic)
