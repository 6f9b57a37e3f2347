"""Image files: layouts, the rules for every kind of image, and what happens to those that cannot be decoded."""

import logging
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from jaxkd import config as configs
from jaxkd import data
from jaxkd.data import pixels
from jaxkd.data.folder import listing, read_image
from jaxkd.errors import UserError


def options(root, **more):
  return configs.complete({"data": {"name": "folder", "root": str(root), **more}}).data


def save(path, array, **more):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.asarray(array, np.uint8)).save(path, **more)
  return path


def write_classes(root, names, count, shape=(8, 8, 3)):
  """`count` files of each class, every one of a single colour of its own."""
  for c, name in enumerate(names):
    for i in range(count):
      save(root / name / f"{i:03}.png", np.full(shape, 50 * c + i))


# Layouts


def test_train_and_test_folders(tmp_path):
  write_classes(tmp_path / "train", ["cat", "ant"], 10)
  write_classes(tmp_path / "test", ["ant"], 4)
  (tmp_path / "train" / "notes.txt").write_text("not a class")
  (tmp_path / "train" / "ant" / "notes.txt").write_text("not an image")
  dataset, test = data.load(options(tmp_path)), data.load_test(options(tmp_path))
  assert dataset.class_names == ("ant", "cat")
  assert (len(dataset.train), len(dataset.validation), dataset.image_shape) == (18, 2, (8, 8, 3))
  assert test.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
  assert test.labels.tolist() == [0] * 4
  for image, label in zip(dataset.train.images, dataset.train.labels, strict=True):
    assert image[0, 0, 0] // 50 == 1 - label  # "ant" was written second, with values from 50


def test_a_flat_folder_has_its_test_split_cut(tmp_path):
  write_classes(tmp_path, ["9", "10"], 20)
  dataset, test = data.load(options(tmp_path)), data.load_test(options(tmp_path))
  assert dataset.class_names == ("9", "10")
  assert [len(dataset.train), len(dataset.validation), len(test)] == [28, 4, 8]


def test_a_list_gives_the_same_as_the_folders(tmp_path):
  write_classes(tmp_path / "files", ["ant", "cat"], 20)
  lines = [f"files/{c}/{i:03}.png,{c}" for c in ("ant", "cat") for i in range(20)]
  (tmp_path / "train.csv").write_text("\n".join(["path,label", *lines, ""]))
  chosen = [options(tmp_path / "files"), options(tmp_path), options(tmp_path / "train.csv")]
  assert len({data.load(o).digest for o in chosen}) == 1
  (tmp_path / "test.csv").write_text("label,path\ncat,files/cat/003.png\n")
  assert data.load_test(options(tmp_path)).labels.tolist() == [1]


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("file,label\nx,y\n", r"has the columns \['file', 'label'\]"),
    ("path,label\nno.png,a\n", r"line 2: .*no.png does not exist"),
    ("path,label\nno.png\n", "line 2: no path or no label"),
    ("path,label\n", r"needs train/CLASS"),
  ],
)
def test_lists_that_cannot_be_read(tmp_path, text, message):
  (tmp_path / "train.csv").write_text(text)
  with pytest.raises(UserError, match=message):
    data.load(options(tmp_path))


def test_a_test_class_of_its_own_is_refused(tmp_path):
  write_classes(tmp_path / "train", ["ant", "cat"], 10)
  write_classes(tmp_path / "test", ["cap"], 1)
  with pytest.raises(UserError, match="class 'cap' is not among the training classes") as e:
    data.load(options(tmp_path))
  assert "'cat'" in e.value.hint


def test_an_empty_class_folder_is_a_warning(tmp_path, caplog):  # fault 15
  write_classes(tmp_path, ["ant", "cat"], 20)
  (tmp_path / "bee").mkdir()
  assert data.load(options(tmp_path)).class_names == ("ant", "bee", "cat")
  assert "class 1 ('bee') has no image" in caplog.text


# Size and channels


def test_grey_files_stay_grey_unless_one_is_coloured(tmp_path):
  write_classes(tmp_path, ["ant", "cat"], 20, shape=(8, 8))
  assert data.load(options(tmp_path)).image_shape == (8, 8, 1)
  assert data.load(options(tmp_path, channels=3)).image_shape == (8, 8, 3)
  save(tmp_path / "cat" / "red.png", np.full((8, 8, 3), (255, 0, 0)))
  assert data.load(options(tmp_path)).image_shape == (8, 8, 3)
  assert data.load_test(options(tmp_path, channels=1)).images.shape[1:] == (8, 8, 1)


def test_files_of_several_sizes_need_a_size(tmp_path):
  write_classes(tmp_path, ["ant", "cat"], 20)
  save(tmp_path / "cat" / "wide.png", np.zeros((8, 12, 3)))
  with pytest.raises(UserError, match=r"wide.png has 12 x 8 pixels, the first image 8 x 8") as e:
    data.load(options(tmp_path))
  assert "--config.data.image_size" in e.value.hint
  assert data.load(options(tmp_path, image_size=6)).image_shape == (6, 6, 3)


def test_resizing_keeps_the_centre_square(tmp_path):
  rng = np.random.default_rng(0)
  wide = rng.integers(0, 256, (20, 36, 3), np.uint8)
  found = read_image(save(tmp_path / "a.png", wide), size=10, channels=3)
  # Independently: scale the whole, then crop; and crop at whole pixels, then scale. Pillow agrees with the first.
  whole = Image.fromarray(wide).resize((18, 10), Image.Resampling.BICUBIC)
  np.testing.assert_allclose(found, np.asarray(whole)[:, 4:14], atol=1)
  squashed = np.asarray(Image.fromarray(wide).resize((10, 10), Image.Resampling.BICUBIC))
  assert np.abs(found.astype(int) - squashed).mean() > 5  # negative control
  np.testing.assert_array_equal(read_image(tmp_path / "a.png", size=20, channels=3), wide[:, 8:28])


# The rules of jaxkd.data.pixels (fault 14)


def decoded(path, image, **more):
  image.save(path, **more)
  return pixels.decode(path)


def test_grey_and_one_bit_images_have_one_channel(tmp_path):
  grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
  np.testing.assert_array_equal(decoded(tmp_path / "a.png", Image.fromarray(grey)), grey)
  bits = decoded(tmp_path / "b.png", Image.fromarray(grey > 31))
  np.testing.assert_array_equal(bits, np.where(grey > 31, 255, 0))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_composited_over_white(tmp_path, mode):
  channels = len(mode)
  rng = np.random.default_rng(1)
  values = rng.integers(0, 256, (8, 8, channels), np.uint8)
  found = decoded(tmp_path / "a.png", Image.fromarray(values))
  alpha = values[..., -1:].astype(float) / 255
  expected = values[..., :-1] * alpha + 255 * (1 - alpha)
  np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=1)
  assert (
    np.abs(found.reshape(expected.shape) - values[..., :-1].astype(float)).max() > 50
  )  # it is not dropped


def test_palettes_become_rgb(tmp_path):
  palette = Image.new("P", (2, 1))
  palette.putpalette([10, 20, 30, 200, 100, 50])
  palette.putdata([0, 1])
  expected = [[[10, 20, 30], [200, 100, 50]]]
  np.testing.assert_array_equal(decoded(tmp_path / "a.png", palette), expected)
  transparent = decoded(tmp_path / "b.png", palette, transparency=0)
  np.testing.assert_array_equal(transparent, [[[255, 255, 255], [200, 100, 50]]])


def test_sixteen_bits_keep_the_high_byte(tmp_path):
  values = np.array([[0, 255, 256, 32767, 65535]], np.uint16)
  np.testing.assert_array_equal(decoded(tmp_path / "a.png", Image.fromarray(values)), [[0, 0, 1, 127, 255]])


def test_cmyk_becomes_rgb(tmp_path):
  image = Image.new("CMYK", (4, 4), (0, 255, 255, 0))
  red = decoded(tmp_path / "a.tif", image)
  np.testing.assert_array_equal(red[0, 0], [255, 0, 0])


def test_one_pixel_is_enlarged(tmp_path):
  path = save(tmp_path / "a.png", np.full((1, 1, 3), (7, 8, 9)))
  np.testing.assert_array_equal(read_image(path, size=8, channels=3), np.full((8, 8, 3), (7, 8, 9)))


def test_exif_orientation_is_applied(tmp_path):
  values = np.zeros((8, 16, 3), np.uint8)
  values[:, :8] = 255  # white on the left of the stored image
  exif = Image.Exif()
  exif[0x0112] = 6  # shown turned by 90 degrees clockwise: left becomes top
  found = decoded(tmp_path / "a.jpg", Image.fromarray(values), exif=exif, quality=95)
  assert found.shape == (16, 8, 3)
  assert found[:7].min() > 230
  assert found[9:].max() < 25


def test_several_frames_give_the_first(tmp_path):
  frames = [Image.new("L", (4, 4), v) for v in (10, 200)]
  found = decoded(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
  assert found.reshape(-1, found.shape[-1] if found.ndim == 3 else 1).mean() == 10


@pytest.mark.parametrize("mode", ["I", "F"])
def test_values_of_unknown_range_are_refused(tmp_path, mode):
  with pytest.raises(UserError, match=r"a.tif holds .*range is not known"):
    decoded(tmp_path / "a.tif", Image.new(mode, (4, 4)))


def chunk(kind, body):
  return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def bomb(path, side):
  """A PNG of a few hundred bytes that declares `side` x `side` pixels."""
  header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
  path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 999)))
  return path


@pytest.mark.parametrize("side", [8193, 10_000, 60_000])
def test_decompression_bombs_are_refused_by_their_header(tmp_path, side):
  path = bomb(tmp_path / "a.png", side)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    with pytest.raises(UserError, match=rf"a.png (declares {side} x {side}|: Image size)|a.png: Image size"):
      pixels.decode(path)


def test_arrays_and_files_turn_grey_alike():
  values = np.random.default_rng(2).integers(0, 256, (64, 64, 3), np.uint8)
  expected = np.asarray(Image.fromarray(values).convert("L"))
  np.testing.assert_array_equal(pixels.to_channels(values, 1)[..., 0], expected)


# Files that cannot be decoded (fault 13)


@pytest.fixture
def damaged(tmp_path):
  write_classes(tmp_path / "train", ["ant", "cat"], 100)
  write_classes(tmp_path / "test", ["ant", "cat"], 2)
  path = tmp_path / "train" / "cat" / "050.png"
  path.write_bytes(path.read_bytes()[:40])
  return tmp_path


def test_an_undecodable_image_stops_with_its_path(damaged):
  with pytest.raises(UserError, match=r"cannot decode .*train/cat/050.png") as e:
    data.load(options(damaged))
  assert "data.on_error=skip" in e.value.hint


def test_undecodable_images_are_skipped_counted_and_logged_on_request(damaged, caplog):
  dataset = data.load(options(damaged, on_error="skip"))
  assert len(dataset.train) + len(dataset.validation) == 199
  assert "cat/050.png" in caplog.text
  assert "skipped 1 of 200 images" in caplog.text
  kept = np.concatenate([p.images[:, 0, 0, 0][p.labels == 1] for p in (dataset.train, dataset.validation)])
  assert sorted(kept.tolist()) == [v for v in range(50, 150) if v != 100]  # 050.png shows 50 + 50


def test_skipping_stops_above_one_per_cent(damaged, caplog):
  caplog.set_level(logging.CRITICAL)
  for i in (3, 4):
    (damaged / "train" / "ant" / f"{i:03}.png").write_bytes(b"<!DOCTYPE html>")
  with pytest.raises(
    UserError, match=r"3 of 200 images cannot be decoded, more than 1%; the last is .*050.png"
  ):
    data.load(options(damaged, on_error="skip"))


def test_a_bomb_among_images_counts_as_undecodable(tmp_path):
  write_classes(tmp_path, ["ant", "cat"], 60)
  bomb(tmp_path / "ant" / "000.png", 60_000)
  with pytest.raises(UserError, match=r"ant/000.png"):
    data.load(options(tmp_path))
  dataset = data.load(options(tmp_path, on_error="skip"))
  assert (
    len(dataset.train) + len(dataset.validation) + len(data.load_test(options(tmp_path, on_error="skip")))
    == 119
  )


def test_listing_reads_no_image(tmp_path):
  (tmp_path / "a").mkdir()
  (tmp_path / "a" / "x.JPG").write_bytes(b"")
  names, train, test = listing(str(tmp_path))
  assert (names, [p.name for p in train.paths], train.labels, test) == (("a",), ["x.JPG"], (0,), None)
