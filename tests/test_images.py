"""Reading one image file: `python -m pytest tests/test_images.py`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from trainer.images import BrokenImageError, is_grayscale, read_image, to_image

ORIENTATION = 0x0112


def noise(height: int, width: int, *channels: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, *channels), np.uint8)


@pytest.fixture
def saved(tmp_path: Path) -> Any:
    """A function that saves an image and returns its path."""

    def save(image: Image.Image, suffix: str = ".png", **options: Any) -> Path:
        path = tmp_path / f"image{suffix}"
        image.save(path, **options)
        return path

    return save


# ---- colours ----


def test_an_rgb_image_is_read_as_it_is(saved: Any) -> None:
    pixels = noise(6, 9, 3)
    np.testing.assert_array_equal(read_image(saved(Image.fromarray(pixels)), 6, 9, 3), pixels.transpose(2, 0, 1))


def test_a_gray_image_is_read_as_it_is(saved: Any) -> None:
    pixels = noise(6, 9)
    np.testing.assert_array_equal(read_image(saved(Image.fromarray(pixels)), 6, 9, 1), pixels[None])


def test_a_gray_image_has_three_equal_channels_as_rgb(saved: Any) -> None:
    pixels = noise(6, 9)
    np.testing.assert_array_equal(read_image(saved(Image.fromarray(pixels)), 6, 9, 3), np.stack([pixels] * 3))


def test_an_rgb_image_is_its_luma_as_gray(saved: Any) -> None:
    pixels = noise(6, 9, 3)
    luma = pixels @ [0.299, 0.587, 0.114]  # ITU-R 601-2
    got = read_image(saved(Image.fromarray(pixels)), 6, 9, 1)
    np.testing.assert_allclose(got[0], luma, atol=1)


def test_a_palette_is_looked_up(saved: Any) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    np.testing.assert_array_equal(read_image(saved(image), 1, 2, 3), [[[255, 0]], [[0, 0]], [[0, 255]]])


def test_the_transparent_entry_of_a_palette_is_white(saved: Any) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    path = saved(image, transparency=0)
    np.testing.assert_array_equal(read_image(path, 1, 2, 3), [[[255, 0]], [[255, 0]], [[255, 255]]])


@pytest.mark.parametrize("suffix", [".png", ".gif"])
def test_transparent_parts_are_white_in_every_format(saved: Any, suffix: str) -> None:
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    got = read_image(saved(image, suffix), 8, 8, 3)
    np.testing.assert_array_equal(got, np.full((3, 8, 8), 255))


def test_what_is_half_transparent_is_half_white(saved: Any) -> None:
    image = Image.new("RGBA", (1, 1), (100, 0, 200, 128))
    expected = [c * 128 / 255 + 255 * 127 / 255 for c in (100, 0, 200)]
    np.testing.assert_allclose(read_image(saved(image), 1, 1, 3)[:, 0, 0], expected, atol=1)


def test_gray_with_alpha_is_laid_on_white(saved: Any) -> None:
    image = Image.fromarray(np.array([[[0, 0], [0, 255], [100, 255]]], np.uint8), "LA")
    path = saved(image)
    np.testing.assert_array_equal(read_image(path, 1, 3, 1), [[[255, 0, 100]]])
    np.testing.assert_array_equal(read_image(path, 1, 3, 3), [[[255, 0, 100]]] * 3)


def test_the_colour_that_a_png_declares_transparent_is_white(saved: Any) -> None:
    image = Image.fromarray(np.array([[[10, 20, 30], [1, 2, 3]]], np.uint8))
    path = saved(image, transparency=(10, 20, 30))
    np.testing.assert_array_equal(read_image(path, 1, 2, 3), [[[255, 1]], [[255, 2]], [[255, 3]]])


def test_cmyk_becomes_rgb(saved: Any) -> None:
    inks = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 0, 255, 0], [0, 0, 0, 255]]], np.uint8)
    path = saved(Image.fromarray(inks, "CMYK"), ".tif")
    white_cyan_yellow_black = [[255, 255, 255], [0, 255, 255], [255, 255, 0], [0, 0, 0]]
    np.testing.assert_array_equal(read_image(path, 1, 4, 3)[:, 0].T, white_cyan_yellow_black)


def test_a_cmyk_jpeg_becomes_rgb(saved: Any) -> None:
    path = saved(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), ".jpg", quality=100)
    np.testing.assert_allclose(read_image(path, 16, 16, 3)[:, 8, 8], [0, 255, 255], atol=3)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bit_values_are_divided_by_256(saved: Any, suffix: str) -> None:
    values = np.array([[0, 255, 256, 0x1234, 0x80FF, 65535]], np.uint16)
    path = saved(Image.fromarray(values), suffix)
    expected = [0, 0, 1, 0x12, 0x80, 255]
    np.testing.assert_array_equal(read_image(path, 1, 6, 1), [[expected]])
    np.testing.assert_array_equal(read_image(path, 1, 6, 3), [[expected]] * 3)


def test_a_black_and_white_image_is_0_and_255(saved: Any) -> None:
    image = Image.fromarray(np.array([[0, 255, 255, 0]], np.uint8)).convert("1")
    np.testing.assert_array_equal(read_image(saved(image), 1, 4, 1), [[[0, 255, 255, 0]]])


@pytest.mark.parametrize(
    ("mode", "suffix", "expected"),
    [
        ("L", ".png", True),
        ("1", ".png", True),
        ("I;16", ".png", True),
        ("I;16", ".tif", True),
        ("RGB", ".png", False),
        ("P", ".png", False),
        ("RGBA", ".png", False),
        ("CMYK", ".tif", False),
    ],
)
def test_gray_and_colour_files_are_told_apart(saved: Any, mode: str, suffix: str, expected: bool) -> None:
    assert is_grayscale(saved(Image.new(mode, (4, 4)), suffix)) is expected


# ---- geometry ----


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda p: p),
        (2, lambda p: p[:, ::-1]),
        (3, lambda p: p[::-1, ::-1]),
        (4, lambda p: p[::-1]),
        (5, lambda p: p.T),
        (6, lambda p: np.rot90(p, -1)),
        (7, lambda p: p[::-1, ::-1].T),
        (8, lambda p: np.rot90(p)),
    ],
)
def test_an_image_is_turned_as_its_exif_data_say(saved: Any, orientation: int, upright: Any) -> None:
    pixels = noise(3, 5)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    expected = upright(pixels)
    got = read_image(saved(Image.fromarray(pixels), exif=exif), *expected.shape, 1)
    np.testing.assert_array_equal(got[0], expected)


@pytest.mark.parametrize(("channels", "shape"), [(1, (1, 5, 7)), (3, (3, 5, 7))])
def test_the_result_has_the_size_that_was_asked_for(saved: Any, channels: int, shape: tuple[int, ...]) -> None:
    got = read_image(saved(Image.fromarray(noise(40, 31, 3))), 5, 7, channels)
    assert got.shape == shape
    assert got.dtype == np.uint8
    assert got.flags.c_contiguous


def test_a_wide_image_is_cut_at_its_sides(saved: Any) -> None:
    red_green_blue = np.repeat(np.eye(3, dtype=np.uint8) * 255, 8, axis=0)[None].repeat(8, axis=0)
    got = read_image(saved(Image.fromarray(red_green_blue)), 8, 8, 3)
    np.testing.assert_array_equal(got, np.array([0, 255, 0])[:, None, None].repeat(8, 1).repeat(8, 2))


def test_shrinking_averages_instead_of_picking_pixels(saved: Any) -> None:
    checkerboard = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    got = read_image(saved(Image.fromarray(checkerboard)), 8, 8, 1)
    np.testing.assert_allclose(got, 127.5, atol=3)


def test_a_single_colour_stays_what_it_is_at_any_size(saved: Any) -> None:
    path = saved(Image.new("RGB", (13, 7), (10, 200, 30)))
    for size in (1, 4, 50):
        got = read_image(path, size, size, 3)
        np.testing.assert_array_equal(got.reshape(3, -1).T, [[10, 200, 30]] * size**2)


# ---- sources and back ----


def test_an_open_file_is_read_like_a_path(saved: Any) -> None:
    path = saved(Image.fromarray(noise(6, 9, 3)))
    np.testing.assert_array_equal(read_image(io.BytesIO(path.read_bytes()), 6, 9, 3), read_image(path, 6, 9, 3))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_of_the_pixels_is_read_as_the_pixels(saved: Any, channels: int) -> None:
    pixels = noise(channels, 6, 9)
    np.testing.assert_array_equal(read_image(saved(to_image(pixels)), 6, 9, channels), pixels)


# ---- files that are no images ----


@pytest.mark.parametrize("read", [is_grayscale, lambda p: read_image(p, 8, 8, 3)], ids=["is_grayscale", "read_image"])
@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\0" * 4096])
def test_a_file_that_is_no_image_is_named(tmp_path: Path, read: Any, content: bytes) -> None:
    path = tmp_path / "no image.png"
    path.write_bytes(content)
    with pytest.raises(BrokenImageError, match=r"no image\.png' cannot be read as an image"):
        read(path)


@pytest.mark.parametrize("read", [is_grayscale, lambda p: read_image(p, 8, 8, 3)], ids=["is_grayscale", "read_image"])
def test_a_missing_file_is_named(tmp_path: Path, read: Any) -> None:
    with pytest.raises(BrokenImageError, match=r"There is no image '.*gone\.png'"):
        read(tmp_path / "gone.png")


def test_a_folder_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(BrokenImageError, match="cannot be read as an image"):
        read_image(tmp_path, 8, 8, 3)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of some damage and reads on
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".gif", ".bmp", ".tif", ".webp"])
def test_a_file_that_ends_early_is_broken_wherever_it_ends(saved: Any, suffix: str, tmp_path: Path) -> None:
    content = saved(Image.fromarray(noise(9, 14, 3)), suffix).read_bytes()
    cut = tmp_path / f"cut{suffix}"
    for end in range(len(content)):
        cut.write_bytes(content[:end])
        assert trouble_with(cut) is None, f"{suffix} cut after {end} of {len(content)} bytes"
    half = content[: len(content) // 2]
    cut.write_bytes(half)
    with pytest.raises(BrokenImageError):
        read_image(cut, 8, 8, 3)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".ppm"])
def test_a_file_with_wrong_bytes_is_read_or_broken(saved: Any, suffix: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    exif[0x010E] = "a description"
    options = {} if suffix == ".ppm" else {"exif": exif}
    content = saved(Image.fromarray(noise(12, 14, 3)), suffix, **options).read_bytes()
    damaged = tmp_path / f"damaged{suffix}"
    rng = np.random.default_rng(0)
    for _ in range(400):
        changed = np.frombuffer(content, np.uint8).copy()
        where = rng.integers(0, min(len(changed), 120), rng.integers(1, 5))
        changed[where] = rng.choice([0, 1, 128, 255], len(where))
        damaged.write_bytes(changed.tobytes())
        assert trouble_with(damaged) is None, f"{suffix} with bytes {sorted(where.tolist())} changed"


def trouble_with(path: Path) -> str | None:
    """What happens to those who read the file, unless it is read or said to be broken, by its name."""
    for read in (is_grayscale, lambda path: read_image(path, 8, 8, 3)):
        try:
            read(path)
        except BrokenImageError as error:
            if str(path) not in str(error):
                return f"the file is not named: {error}"
        except Exception as error:
            return repr(error)
    return None


# ---- open files ----


def opened(image: Image.Image, name: str = "", kind: str = "PNG") -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind)
    if name:
        file.name = name
    return file


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "GIF", "JPEG"])
def test_an_open_file_is_read_as_its_path_is(tmp_path: Path, kind: str) -> None:
    file = opened(Image.fromarray(noise(6, 9)), kind=kind)
    path = tmp_path / "image"
    path.write_bytes(file.getvalue())
    np.testing.assert_array_equal(read_image(file, 4, 4, 3), read_image(path, 4, 4, 3))


def test_an_open_file_can_be_read_twice() -> None:
    file = opened(Image.fromarray(noise(6, 9)))
    np.testing.assert_array_equal(read_image(file, 4, 4, 1), read_image(file, 4, 4, 1))


def test_a_format_that_starts_programs_is_not_read_from_an_open_file(tmp_path: Path) -> None:
    file = opened(Image.fromarray(noise(6, 9, 3)), "drawing.png", "EPS")
    with pytest.raises(BrokenImageError, match=r"'drawing.png' cannot .* it may be PNG, JPEG, WEBP, BMP, GIF, TIFF\."):
        read_image(file, 4, 4, 3)


def test_an_open_file_has_its_limit_of_pixels(saved: Any) -> None:
    image = Image.new("1", (8000, 7000))
    with pytest.raises(BrokenImageError, match=r"'the image' .* has 8000x7000 pixels, but at most 50,000,000"):
        read_image(opened(image), 4, 4, 1)
    assert read_image(saved(image), 4, 4, 1).max() == 0  # the user's own file


@pytest.mark.parametrize("side", [10_000, 14_000])  # Pillow warns of the first and refuses the second
def test_a_decompression_bomb_is_one_sentence(side: int) -> None:
    with pytest.raises(BrokenImageError, match=r"could be decompression bomb DOS attack\.$"):
        read_image(opened(Image.new("1", (side, side))), 4, 4, 1)
