"""What the networks are fitted to and measured on: photographs of ../shared, and text and sounds that are made here."""

import io
import itertools
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

PHOTOS = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "photos.npz"
PARTS = ("fit", "test")
MOST = 300  # of a part

Floats = npt.NDArray[np.float32]
_LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,-"))


def photographs(part: str, count: int) -> list[Image.Image]:
    """The first photographs of a part, 256 x 256."""
    with np.load(PHOTOS) as file:
        data, at = file[f"{part}_jpeg"], file[f"{part}_offsets"]
    return [Image.open(io.BytesIO(data[a:b].tobytes())).convert("RGB") for a, b in itertools.pairwise(at)][:count]


def classes(part: str, count: int) -> npt.NDArray[np.int64]:
    """Their classes in ImageNet, 0 to 999."""
    with np.load(PHOTOS) as file:
        return np.asarray(file[f"{part}_label"][:count], np.int64)


def for_efficientnet(part: str, count: int) -> Floats:
    """[n, 3, 224, 224], as its TensorFlow release takes them."""
    return ((_pixels(photographs(part, count), 224) - 127) / 128).astype(np.float32)


def for_hed(part: str, count: int) -> Floats:
    """[n, 3, 160, 160], BGR less Caffe's means."""
    means = np.array([104.00699, 116.66877, 122.67892], np.float32)
    return (_pixels(photographs(part, count), 160)[:, ::-1] - means[:, None, None]).astype(np.float32)


def signs(part: str, count: int) -> Floats:
    """[n, 3, 256, 256], -1 to 1: photographs with words on them; without, text detection has nothing to find."""
    source = np.random.default_rng(PARTS.index(part))
    images = photographs(part, count)
    for image in images:
        for place in range(3):
            light, dark = source.integers(170, 256, 3), source.integers(0, 90, 3)
            front, back = (light, dark) if source.random() < 0.5 else (dark, light)
            font = ImageFont.load_default(int(source.integers(12, 36)))
            at, text = (int(source.integers(0, 80)), 10 + 80 * place + int(source.integers(0, 40))), _words(source, 2)
            draw = ImageDraw.Draw(image)
            if source.random() < 0.6:
                draw.rectangle(draw.textbbox(at, text, font), tuple(map(int, back)))
            draw.text(at, text, tuple(map(int, front)), font)
    return ((_pixels(images) - 127.5) / 127.5).astype(np.float32)


def lines_of_text(part: str, count: int) -> Floats:
    """[n, 3, 48, 320], -1 to 1: random words and numbers, dark on light or light on dark, a little noise."""
    source = np.random.default_rng(PARTS.index(part))
    lines = []
    for _ in range(count):
        light, dark = source.integers(170, 256, 3), source.integers(0, 90, 3)
        back, front = (light, dark) if source.random() < 0.7 else (dark, light)
        image = Image.new("RGB", (320, 48), tuple(map(int, back)))
        font = ImageFont.load_default(int(source.integers(20, 34)))
        at = (8, int(source.integers(2, 10)))
        ImageDraw.Draw(image).text(at, _words(source, 3), tuple(map(int, front)), font)
        noisy = np.asarray(image, np.float32) + source.normal(0, 6, (48, 320, 3))
        lines.append((np.clip(noisy, 0, 255).transpose(2, 0, 1) / 255 - 0.5) / 0.5)
    return np.stack(lines).astype(np.float32)


def sounds(part: str, count: int) -> Floats:
    """[n, 1024]: tones of 60 to 1,000 Hz with overtones and noise at 16 kHz, mean 0, standard deviation 1."""
    source = np.random.default_rng(PARTS.index(part))
    time = np.arange(1024) / 16_000
    frames = []
    for _ in range(count):
        pitch = 60 * (1000 / 60) ** source.random()
        frame = np.zeros(1024)
        for overtone in range(1, 9):
            loud = source.random() / overtone
            frame += loud * np.sin(2 * np.pi * (overtone * pitch * time + source.random()))
        frame += source.normal(0, 0.02 + 0.2 * source.random(), 1024)
        frames.append((frame - frame.mean()) / frame.std())
    return np.stack(frames).astype(np.float32)


def _pixels(images: list[Image.Image], crop: int = 256) -> Floats:
    """[n, 3, crop, crop], RGB, 0 to 255, of the middle."""
    edge = (256 - crop) // 2
    cut = [image.crop((edge, edge, edge + crop, edge + crop)) for image in images]
    return np.stack([np.asarray(image, np.float32).transpose(2, 0, 1) for image in cut])


def _words(source: np.random.Generator, count: int) -> str:
    return " ".join("".join(source.choice(_LETTERS, source.integers(2, 9))) for _ in range(count))
