"""A model's own `tokenizer.json`, through the `tokenizers` package (extra `hf`)."""

import importlib.util
import threading
from pathlib import Path
from typing import Any

from inf_middleware.domain.errors import ConfigError


class TokenizerFile:
    """Counts by a `tokenizer.json`; it is read at the first use (about half a second).

    Raises:
        ConfigError: There is no such file, or the package is missing.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise ConfigError(f"counter is {str(path)!r}; there is no such file")
        if importlib.util.find_spec("tokenizers") is None:
            raise ConfigError(
                f"counter is {str(path)!r}, and the package `tokenizers` is missing; install"
                " inf-middleware[hf]"
            )
        self._tokenizer: Any = None
        self._lock = threading.Lock()

    @property
    def is_loaded(self) -> bool:
        """Whether the file has been read."""
        return self._tokenizer is not None

    def load(self) -> Any:
        """Return the tokenizer.

        Raises:
            ConfigError: The file is none.
        """
        if self._tokenizer is None:
            with self._lock:
                self._tokenizer = self._tokenizer or self._read()
        return self._tokenizer

    def __call__(self, text: str) -> int:
        """Count the tokens of a text."""
        # A lone surrogate has no UTF-8, which the package needs; U+FFFD is what servers make of it.
        text = text.encode("utf-8", "replace").decode("utf-8")
        # Of its ways to encode this one lets go of the GIL. No special tokens: once per text they
        # would be too many, and the template's are counted by the profile.
        (encoded,) = self.load().encode_batch_fast([text], add_special_tokens=False)
        return len(encoded)

    def _read(self) -> Any:
        import tokenizers  # noqa: PLC0415 - an extra

        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(self.path))
        except Exception as error:  # it raises no class of its own
            raise ConfigError(f"counter: {self.path} is no tokenizer.json: {error}") from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer
