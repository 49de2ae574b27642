"""Makes scene.mp4, the clip that the demo plays: an empty room into which two people walk, one after the other.

    pip install scikit-image      (in any environment that also has av, numpy and opencv-python-headless)
    python demo/make_scene.py [OUTPUT]

The people and the floor are sample images inside scikit-image's wheel (CREDITS.md); the rest is drawn here. Nothing is
random from run to run, so the same library versions give the same clip. scikit-image is needed by nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np

WIDTH_PX, HEIGHT_PX = 640, 480
FRAME_RATE_FPS = 10
DURATION_S = 30.0
SKIRTING_PX = 330  # where the wall meets the floor
COUNTER_PX = 398  # its far edge; it hides where the photographs end
NOISE_LEVELS = 2.0  # standard deviation of the sensor noise
CRF = "25"

# Outlines in the coordinates of the 512 x 512 photographs; GrabCut finds the exact edge near them.
ASTRONAUT_OUTLINE = """28,512 20,400 24,330 42,280 62,245 118,208 114,190 122,175 140,155 160,148 184,148 180,130
165,115 155,95 153,70 165,45 190,25 225,15 255,18 285,38 300,65 300,100 288,120 272,135 262,150 256,165 256,173
285,195 303,225 304,232 330,248 345,270 355,300 364,345 395,343 430,355 465,380 487,415 497,450 505,480 505,512"""
PHOTOGRAPHER_OUTLINE = """0,512 0,254 20,235 55,180 70,150 95,130 130,122 145,108 162,104 165,85 180,70 205,64 235,72
258,88 270,108 268,130 258,138 262,139 322,138 325,155 322,168 330,172 331,200 322,215 312,230 304,244 303,262 303,275
290,285 270,300 245,312 207,295 180,335 140,382 148,420 150,512"""
PHOTOGRAPHER_GAPS = (  # between face and camera, and between his hands
    """252,144 254,151 260,151 260,177 266,178 272,186 273,199 279,200 262,207 241,208 242,203 239,200 241,190 242,183
    245,178 247,171 252,170 255,166 254,160 251,152 251,146""",
    "243,210 268,208 262,215 260,222 264,227 249,246 245,234 243,220",
)
PHOTOGRAPHER_SKIN = """196,128 250,130 250,152 253,160 254,166 251,169 246,171 246,178 242,183 241,192 236,197 205,190
184,165 178,140"""
OUTLINE_BAND_PX = 5


class Cutout(NamedTuple):
    bgr: np.ndarray  # float, 0..255
    alpha: np.ndarray  # float, 0..1


class Visit(NamedTuple):
    """A person who comes in from one side, stays, and goes back. Positions are those of the cut-out's middle."""

    cutout: Cutout
    enters_s: float
    stays_s: float
    leaves_s: float
    gone_s: float
    outside_px: int
    inside_px: int
    scale: float


def main() -> int:
    output = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent / "scene.mp4"
    try:
        from skimage import data
    except ImportError:
        sys.stderr.write("make_scene.py needs the photographs of scikit-image: pip install scikit-image\n")
        return 1
    room = draw_room(data.brick())
    counter = draw_counter()
    visits = plan_visits(astronaut=data.astronaut()[:, :, ::-1], photographer=data.camera())
    write_clip(output, (render(room, counter, visits, index) for index in range(int(DURATION_S * FRAME_RATE_FPS))))
    sys.stdout.write(f"{output}: {output.stat().st_size / 1000:.0f} kB\n")
    return 0


def plan_visits(*, astronaut: np.ndarray, photographer: np.ndarray) -> list[Visit]:
    """Empty for 5 s, a visit, empty for 8 s, a visit: also when the clip is played in a loop."""
    first = cut_out(astronaut, ASTRONAUT_OUTLINE, bottom_px=445)
    second = cut_out(tint_skin(photographer), PHOTOGRAPHER_OUTLINE, gaps=PHOTOGRAPHER_GAPS, bottom_px=430)
    return [
        Visit(first, 5.0, 7.2, 10.6, 12.6, outside_px=840, inside_px=395, scale=0.72),
        Visit(second, 20.6, 22.6, 25.4, 27.4, outside_px=-210, inside_px=190, scale=0.80),
    ]


# --- the room ---


def soft_noise(height_px: int, width_px: int, cell_px: tuple[int, int], seed: int) -> np.ndarray:
    """Values of about -1..1 that change over `cell_px` (down, across)."""
    cells = (width_px // cell_px[1] + 2, height_px // cell_px[0] + 2)
    coarse = np.random.default_rng(seed).standard_normal((cells[1], cells[0])).astype(np.float32)
    return cv2.resize(coarse, (width_px, height_px), interpolation=cv2.INTER_CUBIC)


def draw_room(brick: np.ndarray) -> np.ndarray:
    room = np.empty((HEIGHT_PX, WIDTH_PX, 3), np.float32)
    room[:] = (168, 182, 188)  # plaster
    for cell_px, strength in ((90, 4.0), (12, 1.6), (2, 1.2)):
        room += strength * soft_noise(HEIGHT_PX, WIDTH_PX, (cell_px, cell_px), seed=cell_px)[:, :, None]
    floor = cv2.resize(brick, (960, 230), interpolation=cv2.INTER_AREA)[: HEIGHT_PX - SKIRTING_PX, 160 : 160 + WIDTH_PX]
    room[SKIRTING_PX:] = (30 + 0.75 * floor[:, :, None]) * np.array((0.84, 0.93, 1.0), np.float32)
    draw_window(room)
    draw_door(room)
    cv2.rectangle(room, (0, SKIRTING_PX - 13), (437, SKIRTING_PX), (196, 203, 206), -1)
    cv2.rectangle(room, (585, SKIRTING_PX - 13), (WIDTH_PX, SKIRTING_PX), (196, 203, 206), -1)
    cv2.line(room, (0, SKIRTING_PX - 14), (437, SKIRTING_PX - 14), (140, 146, 150), 1)
    cv2.rectangle(room, (405, 205), (419, 225), (212, 216, 218), -1)  # light switch
    cv2.rectangle(room, (409, 211), (415, 219), (190, 194, 196), -1)
    shade = np.zeros((HEIGHT_PX, WIDTH_PX), np.float32)
    shade[SKIRTING_PX : SKIRTING_PX + 12] = 40  # the floor is dark along the wall
    return np.clip(room - cv2.GaussianBlur(shade, (0, 0), 7)[:, :, None], 0, 255) * daylight()[:, :, None]


def draw_window(room: np.ndarray) -> None:
    cv2.rectangle(room, (52, 62), (208, 212), (205, 210, 212), -1)
    cv2.rectangle(room, (62, 72), (198, 202), (232, 226, 214), -1)
    for y_px in range(74, 202, 8):  # blind
        cv2.line(room, (62, y_px), (198, y_px), (190, 190, 186), 2)
        cv2.line(room, (62, y_px + 2), (198, y_px + 2), (216, 214, 206), 1)
    cv2.line(room, (130, 62), (130, 212), (198, 203, 205), 5)
    cv2.rectangle(room, (44, 212), (216, 222), (188, 195, 198), -1)  # sill
    cv2.line(room, (44, 223), (216, 223), (120, 130, 135), 2)


def draw_door(room: np.ndarray) -> None:
    cv2.rectangle(room, (437, 58), (585, SKIRTING_PX), (176, 186, 190), -1)  # frame
    cv2.rectangle(room, (449, 70), (573, SKIRTING_PX), (72, 98, 126), -1)
    grain = soft_noise(SKIRTING_PX - 70, 124, (60, 3), seed=5)
    room[70:SKIRTING_PX, 449:573] += 7 * grain[:, :, None]
    for top_px, bottom_px in ((88, 186), (206, 312)):
        cv2.rectangle(room, (465, top_px), (557, bottom_px), (50, 72, 96), 2)
        cv2.rectangle(room, (467, top_px + 2), (559, bottom_px + 2), (98, 124, 150), 1)
    cv2.rectangle(room, (437, 58), (585, SKIRTING_PX), (128, 138, 142), 1)
    cv2.line(room, (449, 70), (449, SKIRTING_PX), (60, 76, 92), 2)
    cv2.line(room, (455, 200), (468, 200), (200, 204, 206), 3)  # handle
    cv2.circle(room, (456, 200), 4, (170, 176, 180), -1)


def daylight() -> np.ndarray:
    """Brightest near the window, dark in the corners."""
    y_px, x_px = np.mgrid[0:HEIGHT_PX, 0:WIDTH_PX].astype(np.float32)
    distance = np.hypot((x_px - 190) / 620, (y_px - 170) / 480)
    return np.clip(1.06 - 0.42 * distance**1.6, 0.55, 1.1)


def draw_counter() -> Cutout:
    bgr = np.zeros((HEIGHT_PX, WIDTH_PX, 3), np.float32)
    front_px = COUNTER_PX + 38
    bgr[COUNTER_PX:front_px] = (104, 138, 172)
    bgr[front_px:] = (62, 86, 112)
    bgr[COUNTER_PX:] += 6 * soft_noise(HEIGHT_PX - COUNTER_PX, WIDTH_PX, (3, 120), seed=9)[:, :, None]
    bgr[front_px : front_px + 3] = (130, 164, 196)  # edge
    for x_px in range(-40, WIDTH_PX, 172):
        cv2.line(bgr, (x_px, front_px + 6), (x_px, HEIGHT_PX), (40, 58, 78), 2)
    alpha = np.zeros((HEIGHT_PX, WIDTH_PX), np.float32)
    alpha[COUNTER_PX:] = 1
    return Cutout(bgr * daylight()[:, :, None], cv2.GaussianBlur(alpha, (1, 3), 0))


# --- the people ---


def points(text: str) -> np.ndarray:
    return np.array([[int(value) for value in pair.split(",")] for pair in text.split()], np.int32)


def polygon_mask(outline: str) -> np.ndarray:
    mask = np.zeros((512, 512), np.uint8)
    cv2.fillPoly(mask, [points(outline)], 1)
    return mask


def tint_skin(grey: np.ndarray) -> np.ndarray:
    """The photographer's picture is grey: his coat may stay so, his face gets the colour of skin."""
    bgr = cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR).astype(np.float32)
    skin = polygon_mask(PHOTOGRAPHER_SKIN).astype(np.float32) * np.clip((bgr[:, :, 0] - 45) / 30, 0, 1)
    skin = cv2.GaussianBlur(skin, (0, 0), 1.5)[:, :, None]
    coat = bgr * np.array((1.0, 0.97, 0.96), np.float32) + (8, 6, 5)
    return np.clip(bgr * np.array((0.72, 0.88, 1.16), np.float32) * skin + coat * (1 - skin), 0, 255).astype(np.uint8)


def cut_out(bgr: np.ndarray, outline: str, *, gaps: tuple[str, ...] = (), bottom_px: int) -> Cutout:
    """The person without the background, down to `bottom_px`, with soft edges."""
    bgr = np.ascontiguousarray(bgr)
    inside = polygon_mask(outline)
    band = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * OUTLINE_BAND_PX + 1,) * 2)
    trimap = np.full((512, 512), cv2.GC_BGD, np.uint8)
    trimap[cv2.dilate(inside, band) == 1] = cv2.GC_PR_BGD
    trimap[inside == 1] = cv2.GC_PR_FGD
    trimap[cv2.erode(inside, band, borderValue=1) == 1] = cv2.GC_FGD
    for gap in gaps:
        trimap[polygon_mask(gap) == 1] = cv2.GC_BGD
    cv2.setRNGSeed(1)
    cv2.grabCut(bgr, trimap, None, np.zeros((1, 65)), np.zeros((1, 65)), 4, cv2.GC_INIT_WITH_MASK)
    mask = np.isin(trimap, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    alpha = cv2.GaussianBlur(cv2.erode(mask, np.ones((3, 3), np.uint8), borderValue=1).astype(np.float32), (0, 0), 1.2)
    return Cutout(bgr[:bottom_px].astype(np.float32), alpha[:bottom_px])


def pose(visit: Visit, time_s: float) -> tuple[float, float, float] | None:
    """Middle (px), lift (px) and scale at that time; None while the person is not there."""
    if not visit.enters_s <= time_s < visit.gone_s:
        return None
    if time_s < visit.stays_s:
        way = (time_s - visit.enters_s) / (visit.stays_s - visit.enters_s)
    else:
        way = min(1.0, (visit.gone_s - time_s) / (visit.gone_s - visit.leaves_s))
    is_walking = way < 1
    eased = way * (1.25 - 0.25 * way)
    middle_px = visit.outside_px + (visit.inside_px - visit.outside_px) * min(1.0, eased)
    if is_walking:
        return middle_px, 5 * abs(np.sin(5.6 * time_s)), visit.scale * (0.93 + 0.07 * way)
    sway = time_s - visit.stays_s
    return middle_px + 5 * np.sin(1.3 * sway), 1.5 * np.sin(1.9 * sway) ** 2, visit.scale


def paste(picture: np.ndarray, visit: Visit, time_s: float) -> None:
    placed = pose(visit, time_s)
    if placed is None:
        return
    middle_px, lift_px, scale = placed
    height_px, width_px = visit.cutout.alpha.shape
    bottom_px = COUNTER_PX + 26 - lift_px  # behind the counter, whatever the lift
    matrix = np.array([[scale, 0, middle_px - scale * width_px / 2], [0, scale, bottom_px - scale * height_px]])
    size = (WIDTH_PX, HEIGHT_PX)
    bgr = cv2.warpAffine(visit.cutout.bgr, matrix, size, flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE)
    alpha = cv2.warpAffine(visit.cutout.alpha, matrix, size, flags=cv2.INTER_AREA)
    shadow = cv2.warpAffine(alpha, np.array([[1, 0, 22.0], [0, 1, 16.0]]), size)
    picture *= 1 - 0.28 * cv2.GaussianBlur(shadow, (0, 0), 11)[:, :, None]
    lit = bgr * (0.82 * daylight() + 0.06)[:, :, None]
    picture += (lit - picture) * alpha[:, :, None]


def render(room: np.ndarray, counter: Cutout, visits: list[Visit], index: int) -> np.ndarray:
    picture = room.copy()
    for visit in visits:
        paste(picture, visit, index / FRAME_RATE_FPS)
    picture += (counter.bgr - picture) * counter.alpha[:, :, None]
    picture = cv2.GaussianBlur(picture, (0, 0), 0.6)  # one lens for all
    noise = np.random.default_rng(index).standard_normal((HEIGHT_PX, WIDTH_PX, 1)).astype(np.float32)
    return np.clip(picture + NOISE_LEVELS * noise, 0, 255).astype(np.uint8)


def write_clip(output: Path, pictures: Iterable[np.ndarray]) -> None:
    with av.open(str(output), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=FRAME_RATE_FPS, options={"crf": CRF, "preset": "slow"})
        stream.width, stream.height, stream.pix_fmt = WIDTH_PX, HEIGHT_PX, "yuv420p"
        stream.codec_context.gop_size = 3 * FRAME_RATE_FPS
        stream.codec_context.time_base = Fraction(1, FRAME_RATE_FPS)
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        container.mux(stream.encode(None))


if __name__ == "__main__":
    sys.exit(main())
