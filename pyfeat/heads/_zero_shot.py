"""Classes from their names alone, where texts and images share a space."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from pyfeat._estimator_file import load_estimator, save_estimator
from pyfeat._identity import Space
from pyfeat.heads._check import check_positive
from pyfeat.heads._linear import LinearScores

_SCALE = 100.0  # what CLIP's logit scale is clipped to, and has reached in most of its models

_TINY = float(np.finfo(np.float32).tiny)


class TextEncoder(Protocol):
    """What turns texts into rows that can be compared with those of images.

    Where it has `get_text_space`, rows of `X` must be comparable with that space; where it has
    `get_logit_scale`, that is the scale of the probabilities.
    """

    def transform_text(self, texts: Sequence[str]) -> NDArray[Any]:
        """Return (n, d)."""
        ...


class ZeroShotHead(LinearScores, ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Classify images by the texts that describe the classes; nothing is learned from rows.

    Parameters
    ----------
    classes : sequence of str, or mapping of label to str or sequence of str
        Names of the classes, which go into `templates`; or prompts of each label, which are taken
        as they are. At least two.
    extractor : FeatureExtractor or other object with `transform_text`, optional
        Of the model whose rows are to be classified. Needed for `fit` only.
    templates : sequence of str, default=("a photo of a {}.",)
        Sentences with `{}` in the place of the name; the rows of several are averaged.
    logit_scale : float, optional
        What cosines are multiplied with. By default what the model was trained with, where
        `extractor` says it, else 100. Range (0, inf).

    Attributes
    ----------
    classes_ : ndarray of shape (k,)
        Sorted.
    coef_ : ndarray of shape (k, d), or (1, d) for two classes, float32
        Mean row of the prompts of each class, brought to length 1, times the logit scale; for two
        classes the second minus the first.
    intercept_ : ndarray of shape (k,), or (1,) for two classes
        Zeros.
    logit_scale_ : float
    n_features_in_ : int
    space_ : Space or None
        Space of the texts, if `extractor` says it. Rows of the images of the same model may be
        classified, and rows of its texts.

    Notes
    -----
    Rows are brought to length 1. Then decision_function is s cos(x, c_k) with s the logit scale and
    c_k the mean direction of the prompts of class k (for two classes the difference of the two),
    and predict_proba its softmax, as in [1]_. SigLIP's own probabilities are sigmoids of the same
    cosines plus a bias, each of a class for itself; the order of the classes is the same.

    A row of zeros has the cosine 0 to every class.

    References
    ----------
    .. [1] Radford et al. Learning transferable visual models from natural language supervision.
       ICML 2021, section 3.1.

    Examples
    --------
    >>> import numpy as np
    >>> from pyfeat.heads import ZeroShotHead
    >>> class Letters:
    ...     def transform_text(self, texts):
    ...         return np.array([[t.count("a"), t.count("o")] for t in texts], np.float32)
    >>> head = ZeroShotHead(["cat", "dog"], extractor=Letters(), templates=["{}"]).fit()
    >>> head.predict(np.array([[0.2, 0.9]]))
    array(['dog'], dtype='<U3')
    """

    classes_: NDArray[Any]
    coef_: NDArray[np.float32]
    intercept_: NDArray[np.float32]
    logit_scale_: float
    n_features_in_: int
    space_: Space | None

    def __init__(
        self,
        classes: Sequence[str] | Mapping[Any, str | Sequence[str]],
        *,
        extractor: TextEncoder | None = None,
        templates: Sequence[str] = ("a photo of a {}.",),
        logit_scale: float | None = None,
    ) -> None:
        self.classes = classes
        self.extractor = extractor
        self.templates = templates
        self.logit_scale = logit_scale

    def fit(self, X: Any = None, y: Any = None) -> ZeroShotHead:
        """Bring the prompts of the classes into the space of the images.

        Parameters
        ----------
        X, y : ignored
            Here so that it may end a pipeline.

        Returns
        -------
        self : ZeroShotHead

        Raises
        ------
        TypeError
            If `extractor` has no `transform_text`, or classes, prompts or templates are no text.
        ValueError
            If there are fewer than two classes, one twice or without a prompt, a template has no
            `{}`, `logit_scale` is not positive, or a text has no finite row.
        """
        if self.logit_scale is not None:
            check_positive("logit_scale", self.logit_scale)
        if not hasattr(self.extractor, "transform_text"):
            kind = type(self.extractor).__name__
            raise TypeError(f"extractor must have transform_text, got {kind}")
        prompts = _prompts(self.classes, self.templates)
        labels = sorted(prompts)
        rows = _directions(self.extractor, [prompts[label] for label in labels])
        self.classes_ = np.array(labels)
        self.logit_scale_ = self._scale()
        rows *= np.float32(self.logit_scale_)
        self.coef_ = rows[1:] - rows[:1] if len(rows) == 2 else rows
        self.intercept_ = np.zeros(len(self.coef_), np.float32)
        self.n_features_in_ = rows.shape[1]
        space = getattr(self.extractor, "get_text_space", None)
        self.space_ = None if space is None else space()
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write rows, classes, parameters and the space to one safetensors file.

        Parameters
        ----------
        path : path-like

        Raises
        ------
        NotFittedError
            If there is nothing to save.

        Notes
        -----
        The extractor is not saved: a loaded head classifies, and needs one only to be fitted again.
        """
        check_is_fitted(self)
        alone = copy.copy(self)
        alone.extractor = None
        arrays = {"classes": self.classes_, "coef": self.coef_, "intercept": self.intercept_}
        save_estimator(path, alone, arrays, {"logit_scale": self.logit_scale_})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ZeroShotHead:
        """Read a head that `save` wrote.

        Parameters
        ----------
        path : path-like

        Returns
        -------
        head : ZeroShotHead
            Fitted, without an extractor.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file holds something else.
        """
        head, arrays, facts = load_estimator(path, cls)
        head.classes_, head.coef_ = arrays["classes"], arrays["coef"]
        head.intercept_, head.logit_scale_ = arrays["intercept"], float(facts["logit_scale"])
        return head

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = False
        return tags

    def _scale(self) -> float:
        if self.logit_scale is not None:
            return float(self.logit_scale)
        of_model = getattr(self.extractor, "get_logit_scale", None)
        return _SCALE if of_model is None else float(of_model())

    def _prepared(self, block: Tensor) -> Tensor:
        # Scaled first: the squares of large rows would overflow.
        largest = block.abs().amax(dim=1, keepdim=True)
        return torch.nn.functional.normalize(block / largest.clamp_min(_TINY), dim=1)


def _prompts(classes: Any, templates: Any) -> dict[Any, list[str]]:
    """Return the prompts of each label."""
    if isinstance(classes, Mapping):
        prompts = {k: [v] if isinstance(v, str) else list(v) for k, v in classes.items()}
    else:
        names = _texts("classes", classes)
        if len(set(names)) < len(names):
            raise ValueError(f"classes must differ, got {names}")
        sentences = _texts("templates", templates)
        if lacking := [t for t in sentences if "{}" not in t]:
            raise ValueError(f"templates must hold {{}}, got {lacking[0]!r}")
        prompts = {name: [t.replace("{}", name) for t in sentences] for name in names}
    for label, texts in prompts.items():
        if not _texts(f"prompts of {label!r}", texts):
            raise ValueError(f"classes must each have a prompt, got none for {label!r}")
    if len(prompts) < 2:
        raise ValueError(f"classes must be at least 2, got {list(prompts)}")
    return prompts


def _texts(name: str, values: Any) -> list[str]:
    if isinstance(values, str) or not all(isinstance(v, str) for v in values):
        raise TypeError(f"{name} must be a sequence of str, got {values!r}")
    return list(values)


def _directions(extractor: Any, prompts: Sequence[Sequence[str]]) -> NDArray[np.float32]:
    """Return (k, d): the mean direction of the prompts of each class, of length 1."""
    rows = np.asarray(extractor.transform_text([t for texts in prompts for t in texts]), np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):  # refused below
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        ends = np.cumsum([len(texts) for texts in prompts])
        means = np.stack([part.mean(axis=0) for part in np.split(rows, ends[:-1])])
        means /= np.linalg.norm(means, axis=1, keepdims=True)
    if not np.isfinite(means).all():
        worst = prompts[int(np.argmin(np.isfinite(means).all(axis=1)))]
        raise ValueError(f"prompts must have finite rows that do not cancel, got {list(worst)}")
    return means.astype(np.float32)
