"""Metadata: what files say of how an image was made.

There are two texts: the ``parameters`` of A1111's web UI, which other programs read, and a record
that is sdpy's own. A PNG file has them as text of these names; a JPEG or WebP file as EXIF's
``UserComment``, as A1111's web UI does, and ``MakerNote``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image, PngImagePlugin

PARAMETERS = "parameters"
"""Key of A1111's text in a PNG file."""

RECORD = "sdpy"
"""Key of sdpy's own record in a PNG file."""

_EXIF_IFD = 0x8769
_USER_COMMENT = 0x9286
_MAKER_NOTE = 0x927C
# Exif 2.32, table 9: what says that a UserComment is Unicode. A1111 has it in UTF-16, the high
# byte first.
_UNICODE = b"UNICODE\0"
_ASCII = b"ASCII\0\0\0"
_MAKER = b"sdpy\0"


@dataclass(frozen=True)
class ImageTexts:
    """What a file says of its image.

    Attributes:
        parameters: prompt, negative prompt and facts as A1111's web UI writes them; None for none.
        record: sdpy's own record, as JSON; None for none.
    """

    parameters: str | None = None
    record: str | None = None


NO_TEXTS = ImageTexts()


def png_info(texts: ImageTexts) -> PngImagePlugin.PngInfo | None:
    """The text chunks of a PNG file."""
    if texts == NO_TEXTS:
        return None
    info = PngImagePlugin.PngInfo()
    for key, text in ((PARAMETERS, texts.parameters), (RECORD, texts.record)):
        if text is not None:
            info.add_text(key, text)
    return info


def exif_of(texts: ImageTexts) -> Image.Exif | None:
    """The EXIF data of a JPEG or WebP file."""
    if texts == NO_TEXTS:
        return None
    entries: dict[int, bytes] = {}
    if texts.parameters is not None:
        entries[_USER_COMMENT] = _UNICODE + texts.parameters.encode("utf-16-be")
    if texts.record is not None:
        entries[_MAKER_NOTE] = _MAKER + texts.record.encode("utf-8")
    exif = Image.Exif()
    exif[_EXIF_IFD] = entries
    return exif


def texts_of(image: Image.Image) -> dict[str, str]:
    """All texts of an open image, by their keys in a PNG file; EXIF's by what ours are called."""
    texts = {
        key: str(value)
        for key, value in {**image.info, **getattr(image, "text", {})}.items()
        if isinstance(key, str) and isinstance(value, str)
    }
    try:
        entries = image.getexif().get_ifd(_EXIF_IFD)
    except Exception:  # broken metadata is no reason to refuse a good image
        return texts
    comment, note = entries.get(_USER_COMMENT), entries.get(_MAKER_NOTE)
    if comment:
        texts.setdefault(PARAMETERS, _user_comment(comment))
    if isinstance(note, bytes) and note.startswith(_MAKER):
        texts.setdefault(RECORD, note[len(_MAKER) :].decode("utf-8", "replace"))
    return texts


def _user_comment(comment: bytes | str) -> str:
    if isinstance(comment, str):
        return comment
    for mark, encoding in ((_UNICODE, "utf-16-be"), (_ASCII, "ascii")):
        if comment.startswith(mark):
            return comment[len(mark) :].decode(encoding, "replace")
    return comment.lstrip(b"\0").decode("utf-8", "replace")


class GeneratedImage(Image.Image):
    """A PIL image that carries its metadata: `save` writes it into PNG, JPEG and WebP files.

    Images that PIL makes of it, by `resize` for example, are ordinary ones, with the text in their
    ``info``.

    Attributes:
        parameters: how it was made, as A1111's web UI says it.
        record: how it was made, complete, as a JSON text.
        seed: of its noise.
    """

    parameters: str = ""
    record: str = ""
    seed: int = 0

    @classmethod
    def of(cls, image: Image.Image, texts: ImageTexts, seed: int) -> GeneratedImage:
        """An image with its metadata.

        Args:
            image: the pixels, which are copied.
            texts: how it was made.
            seed: of its noise.
        """
        made = cls()
        made.__setstate__(image.__getstate__())
        for key, text in ((PARAMETERS, texts.parameters), (RECORD, texts.record)):
            if text is not None:
                made.info[key] = text
        made.parameters, made.record = texts.parameters or "", texts.record or ""
        made.seed = seed
        return made

    @property
    def texts(self) -> ImageTexts:
        """Its metadata, for `sdpy.images.files.save_image`."""
        return ImageTexts(self.parameters or None, self.record or None)

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:
        """Write a file as PIL does, with the metadata where it is a PNG, JPEG or WebP."""
        suffix = str(getattr(fp, "name", fp)).lower().rpartition(".")[2]
        params = {**saving(self.texts, (format or suffix).upper()), **params}
        if self.info.get("icc_profile"):  # which PIL leaves out of JPEG files
            params.setdefault("icc_profile", self.info["icc_profile"])
        super().save(fp, format, **params)


def saving(texts: ImageTexts, format: str) -> Mapping[str, Any]:
    """What PIL's ``save`` has to be told, so that a file of this format has the texts."""
    if format == "PNG":
        made: Any = {"pnginfo": png_info(texts)}
    elif format in ("JPEG", "JPG", "WEBP"):
        made = {"exif": exif_of(texts)}
    else:
        return {}
    return {key: value for key, value in made.items() if value is not None}
