"""Explain why a file is not a checkpoint: web page, git-lfs pointer, archive or another format."""

from __future__ import annotations

import codecs
import zipfile
from pathlib import Path

HEAD = 512  # bytes that are needed
SHOWN = 60
PAGES = ("<!doctype", "<html", "<head", "<body", "<?xml", "<!--")
POINTER = "version https://git-lfs.github.com/spec/"
PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf\x27\x1c", b"Rar!")


def foreign_format(head: bytes) -> str | None:
    """Format of a file with these first bytes, and the remedy; None if it may hold weights, or is empty."""
    text = _decode(head)
    if text is not None:
        return _text_format(text.strip()) if text else None
    if head.startswith(b"PK") or (head[:1] == b"\x80" and head[1:2] <= b"\x05") or head[8:9] == b"{":
        return None  # a zip of torch.save, a pickle such as its older form, safetensors
    if head.startswith(PACKED) or head[257:262] == b"ustar":
        return "a packed file; unpack it, and give what is in it"
    if head.startswith(b"\x89HDF"):
        return "an HDF5 file, as Keras writes it; save the weights of a torch network"
    if head.startswith(b"\x93NUMPY"):
        return "a numpy array; save names and tensors with torch.save"
    return "bytes of no format that is known here; fetch it again, or look for the right file"


def foreign_archive(path: Path) -> str | None:
    """Content of an intact zip archive that torch.save has not written, and the remedy; else None."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith("data.pkl") for name in names):
        return None
    if names and all(name.endswith(".npy") for name in names):
        return "numpy arrays; save tensors instead: torch.save({name: torch.tensor(array), ...})"
    return f"a zip archive with {names[0] if names else 'nothing'} in it; unpack it, and give the file of weights"


def _decode(head: bytes) -> str | None:
    """The bytes as UTF-8 text, without an incomplete last character; None if they are not text."""
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head)
    except UnicodeDecodeError:
        return None
    return text if all(character.isprintable() or character in "\t\n\r\f" for character in text) else None


def _text_format(text: str) -> str:
    if text.lower().startswith(PAGES):
        return (
            "a web page (a download that asked for a confirmation, or an error); delete it and fetch the file with a "
            "browser"
        )
    if text.startswith(POINTER):
        return "a git-lfs pointer instead of the file; run `git lfs pull` in its repository"
    line = text.partition("\n")[0].strip()
    shown = line[:SHOWN] + ("..." if len(line) > SHOWN else "")
    kind = "JSON, as servers send with an error" if text.startswith(("{", "[")) else "text"
    return f"{kind} ({shown}); delete it and fetch the file again"
