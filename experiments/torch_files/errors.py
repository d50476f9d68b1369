"""The one error of the reader, and how it shows text that comes from an untrusted file."""

_MAX_SHOWN_CHARACTERS = 100


class TorchFileError(ValueError):
    """A PyTorch file is damaged, unsupported, or holds something that is refused."""


def shown(text: str) -> str:
    """Quotes text of unknown origin on one line, without control characters, of bounded length."""
    if len(text) > _MAX_SHOWN_CHARACTERS:
        text = text[:_MAX_SHOWN_CHARACTERS] + "..."
    return ascii(text)
