"""Before and after the models of PP-OCR: images scaled and normalised, boxes from a map, text from scores.

NumPy only, and nothing of any runtime. It follows PaddleOCR step for step (DB detection with fast scores and
rectangles, angle classification, CTC recognition). Images are uint8 arrays (height, width, 3) in BGR, the order of
the models.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

LIMIT = 960  # the longer side of what detection sees
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)
INSIDE, KEPT = 0.3, 0.6  # the probability of a pixel that is text; the mean probability of a box worth keeping
UNCLIP = 1.5  # the map marks text shrunk; by this much boxes grow again
SMALLEST = 3.0  # pixels, shorter side
TURNED = 0.9  # how sure the classifier must be that a line stands on its head
HEIGHT, NARROWEST = 48, 320  # of what recognition sees


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle at any angle.

    Attributes:
        centre: x and y.
        along: unit vector in reading direction.
        width: extent along it.
        height: extent across it.
        score: mean probability of text inside.
    """

    centre: np.ndarray
    along: np.ndarray
    width: float
    height: float
    score: float = 0.0

    @property
    def across(self) -> np.ndarray:
        """Unit vector from the top of the text to its foot."""
        return np.array([-self.along[1], self.along[0]])

    @property
    def corners(self) -> np.ndarray:
        """Four points (x, y), clockwise from the top left one of the text."""
        along, across = self.along * self.width / 2, self.across * self.height / 2
        corners: np.ndarray = self.centre + np.stack([-along - across, along - across, along + across, -along + across])
        return corners


@dataclass(frozen=True, slots=True)
class Text:
    """What recognition read, and the mean of its characters' probabilities."""

    content: str
    score: float


# --- images


def sample(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bilinear look-up at positions between pixel centres; outside the image its border goes on."""
    height, width = image.shape[:2]
    x, y = np.clip(x, 0, width - 1), np.clip(y, 0, height - 1)
    left, top = np.floor(x).astype(np.intp), np.floor(y).astype(np.intp)
    right, foot = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    fx, fy = (x - left)[..., None].astype(np.float32), (y - top)[..., None].astype(np.float32)
    upper = image[top, left] * (1 - fx) + image[top, right] * fx
    lower = image[foot, left] * (1 - fx) + image[foot, right] * fx
    pixels: np.ndarray = np.rint(upper * (1 - fy) + lower * fy).astype(np.uint8)
    return pixels


def resize(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Bilinear, pixel centres at halves, no filter when it shrinks: what OpenCV does by default."""
    x = (np.arange(width) + 0.5) * image.shape[1] / width - 0.5
    y = (np.arange(height) + 0.5) * image.shape[0] / height - 0.5
    return sample(image, *np.meshgrid(x, y))


def crop(image: np.ndarray, box: Box) -> np.ndarray:
    """The inside of a box, turned level; one that is much higher than wide is taken as a line of text on its side."""
    width, height = max(1, round(box.width)), max(1, round(box.height))
    across, down = np.meshgrid(np.arange(width) * box.width / width, np.arange(height) * box.height / height)
    points = box.corners[0] + across[..., None] * box.along + down[..., None] * box.across
    level = sample(image, points[..., 0], points[..., 1])
    return np.rot90(level) if height >= 1.5 * width else level


# --- detection


def detection_input(image: np.ndarray) -> np.ndarray:
    """What the detector takes: float32 (1, 3, H, W), H and W multiples of 32."""
    height, width = image.shape[:2]
    ratio = min(1.0, LIMIT / max(height, width))
    sides = [max(32, round(int(side * ratio) / 32) * 32) for side in (width, height)]
    pixels = (resize(image, *sides).astype(np.float32) / 255 - MEAN) / DEVIATION
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], np.float32)


def detection_boxes(probability: np.ndarray, image: np.ndarray) -> list[Box]:
    """Boxes of text, in the image's pixels and in reading order, from the detector's map (1, 1, H, W)."""
    chart = probability[0, 0]
    scale = np.array([image.shape[1] / chart.shape[1], image.shape[0] / chart.shape[0]])
    boxes = []
    for component in components(chart > INSIDE):
        box = tightest(component)
        score = mean_inside(chart, box)
        if min(box.width, box.height) < SMALLEST or score < KEPT:
            continue
        grow = 2 * box.width * box.height * UNCLIP / (2 * (box.width + box.height))
        along = box.along * scale
        across = box.across * scale
        boxes.append(
            Box(
                box.centre * scale,
                along / np.linalg.norm(along),
                (box.width + grow) * float(np.linalg.norm(along)),
                (box.height + grow) * float(np.linalg.norm(across)),
                score,
            )
        )
    return in_reading_order(boxes)


def components(mask: np.ndarray) -> Iterator[np.ndarray]:
    """The ends (x, y) of the runs of each group of set pixels that touch, corners included."""
    runs: list[tuple[int, int, int]] = []  # row, first, last
    parent: list[int] = []

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = run = parent[parent[run]]
        return run

    above: list[int] = []
    edges = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    for row, edge in enumerate(edges):
        here: list[int] = []
        for first, end in zip(np.flatnonzero(edge == 1).tolist(), np.flatnonzero(edge == -1).tolist(), strict=True):
            here.append(len(runs))
            parent.append(len(runs))
            runs.append((row, first, end - 1))
            for other in above:
                if runs[other][1] <= end and first <= runs[other][2] + 1:
                    parent[root(other)] = root(here[-1])
        above = here

    groups: dict[int, list[tuple[int, int]]] = {}
    for run, (row, first, last) in enumerate(runs):
        groups.setdefault(root(run), []).extend([(first, row), (last, row)])
    for points in groups.values():
        yield np.array(points, np.float64)


def hull(points: np.ndarray) -> np.ndarray:
    """Corners of the convex hull (Andrew's monotone chain)."""

    def half(ordered: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        kept: list[tuple[float, float]] = []
        for x, y in ordered:
            while len(kept) > 1 and (kept[-1][0] - kept[-2][0]) * (y - kept[-2][1]) <= (kept[-1][1] - kept[-2][1]) * (
                x - kept[-2][0]
            ):
                kept.pop()
            kept.append((x, y))
        return kept[:-1]

    ordered = sorted({(x, y) for x, y in points.tolist()})
    return np.array(half(ordered) + half(ordered[::-1]) or ordered)


def tightest(points: np.ndarray) -> Box:
    """The rectangle of the smallest area around the points: one of its sides lies on a side of their hull."""
    corners = hull(points)
    sides = np.roll(corners, -1, axis=0) - corners
    lengths = np.linalg.norm(sides, axis=1)
    directions = sides[lengths > 0] / lengths[lengths > 0, None] if lengths.any() else np.array([[1.0, 0.0]])
    normals = directions[:, ::-1] * [-1, 1]
    along, across = corners @ directions.T, corners @ normals.T
    best = int(np.argmin(np.ptp(along, axis=0) * np.ptp(across, axis=0)))
    direction = directions[best]
    middle = (along[:, best].min() + along[:, best].max()) / 2, (across[:, best].min() + across[:, best].max()) / 2
    centre = middle[0] * direction + middle[1] * normals[best]
    width, height = float(np.ptp(along[:, best])), float(np.ptp(across[:, best]))
    if abs(direction[1]) > abs(direction[0]):  # the side that is nearer to level is the one along the text
        direction, width, height = np.array([-direction[1], direction[0]]), height, width
    return Box(centre, direction if direction[0] >= 0 else -direction, width, height)


def mean_inside(chart: np.ndarray, box: Box) -> float:
    """The mean of the map over the pixels of a box."""
    limit = np.array(chart.shape[::-1]) - 1
    low = np.clip(np.floor(box.corners.min(axis=0)), 0, limit).astype(int)
    high = np.clip(np.ceil(box.corners.max(axis=0)), 0, limit).astype(int)
    x, y = np.meshgrid(np.arange(low[0], high[0] + 1), np.arange(low[1], high[1] + 1))
    offset = np.stack([x, y], axis=-1) - box.centre
    inside = (abs(offset @ box.along) <= box.width / 2 + 0.5) & (abs(offset @ box.across) <= box.height / 2 + 0.5)
    return float(chart[low[1] : high[1] + 1, low[0] : high[0] + 1][inside].mean())


def in_reading_order(boxes: list[Box]) -> list[Box]:
    """Lines from the top down, and within a line (corners less than 10 pixels apart in height) from the left."""
    ordered = sorted(boxes, key=lambda box: tuple(box.corners[0][::-1]))
    for last in range(1, len(ordered)):
        for at in range(last, 0, -1):
            above, below = ordered[at - 1].corners[0], ordered[at].corners[0]
            if abs(below[1] - above[1]) >= 10 or below[0] >= above[0]:
                break
            ordered[at - 1 : at + 1] = ordered[at], ordered[at - 1]
    return ordered


# --- angle and recognition


def line_input(lines: Sequence[np.ndarray], width: int) -> np.ndarray:
    """Lines of text as float32 (N, 3, 48, width), scaled to the height, cut or filled with zeros at the right."""
    batch = np.zeros((len(lines), 3, HEIGHT, width), np.float32)
    for row, line in zip(batch, lines, strict=True):
        used = min(width, math.ceil(HEIGHT * line.shape[1] / line.shape[0]))
        pixels = resize(line, used, HEIGHT).astype(np.float32) / 255
        row[:, :, :used] = ((pixels - 0.5) / 0.5).transpose(2, 0, 1)
    return batch


def batches(lines: Sequence[np.ndarray], size: int = 6) -> Iterator[tuple[list[int], int]]:
    """Indices of lines of like proportions, and the width that holds them all, batch by batch."""
    order = sorted(range(len(lines)), key=lambda at: lines[at].shape[1] / lines[at].shape[0])
    for start in range(0, len(order), size):
        indices = order[start : start + size]
        widest = max(lines[at].shape[1] / lines[at].shape[0] for at in indices)
        yield indices, max(NARROWEST, int(HEIGHT * widest))


def upright(lines: Sequence[np.ndarray], angles: np.ndarray) -> list[np.ndarray]:
    """Turns the lines round that the classifier (N, 2: upright, upside down) is sure about."""
    return [np.rot90(line, 2) if angle[1] > TURNED else line for line, angle in zip(lines, angles, strict=True)]


def decode(scores: np.ndarray, characters: Sequence[str]) -> list[Text]:
    """Text from (N, steps, classes): the best class of each step, without repeats and blanks (class 0)."""
    texts = []
    for best, probability in zip(scores.argmax(axis=2), scores.max(axis=2), strict=True):
        kept = best != 0
        kept[1:] &= best[1:] != best[:-1]
        content = "".join(characters[at] for at in best[kept])
        texts.append(Text(content, float(probability[kept].mean()) if kept.any() else 0.0))
    return texts
