"""The command line, by the rules of boost::program_options."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any, NamedTuple

from stand_in_camera import CameraError

# The defaults of rpicam-apps.
DEFAULT_SIZE_PX = (640, 480)
DEFAULT_FRAME_RATE = "30"

# name,letter | type or type=value where the option stands alone | default | help. As of v1.8 and later every model has
# the libav ones, and the encoder of a Pi 4 ignores them.
OPTIONS = """
help,h | bool=1 | 0 | Print this help message
version | bool=1 | 0 | Print the version
list-cameras | bool=1 | 0 | List the cameras
camera | uint | 0 | Index of the camera
verbose,v | uint=2 | 1 | 0 is silent, 1 normal, 2 talkative
config,c | text=config.txt | | File with options
info-text | text | #%frame (%fps fps) exp %exp ag %ag dg %dg | Title of the preview window
width | uint | 0 | Width of the picture, 0 = default
height | uint | 0 | Height of the picture, 0 = default
timeout,t | text | 5sec | How long to run, in ms if no unit is given; 0 = for ever
output,o | text | | File, - for stdout, or tcp://address:port
post-process-file | text | | Post-processing stages
post-process-libs | text | | Where the stages are
nopreview,n | bool=1 | 0 | No preview window
preview,p | text | 0,0,0,0 | Preview window as x,y,width,height
fullscreen,f | bool=1 | 0 | Full-screen preview
qt-preview | bool=1 | 0 | Preview with Qt
hflip | bool=1 | 0 | Mirror the picture
vflip | bool=1 | 0 | Turn the picture upside down
rotation | int | 0 | 0 or 180 degrees
roi | text | 0,0,0,0 | Digital zoom
shutter | text | 0 | Fixed exposure time
analoggain | float | 0 | Fixed gain
gain | float | 0 | Fixed gain
metering | text | centre | Metering mode
exposure | text | normal | Exposure mode
ev | float | 0 | Exposure compensation
awb | text | auto | White balance mode
awbgains | text | 0,0 | Fixed red and blue gains
flush | bool=1 | 0 | Pass every frame on at once
wrap | uint | 0 | Restart file numbers here
brightness | float | 0 | -1 to 1
contrast | float | 1 | 1 = normal
saturation | float | 1 | 1 = normal
sharpness | float | 1 | 1 = normal
framerate | float | -1 | Frames per second
denoise | text | auto | Denoise mode
viewfinder-width | uint | 0 | Width for the preview
viewfinder-height | uint | 0 | Height for the preview
tuning-file | text | - | Camera tuning file
lores-width | uint | 0 | Width of the second stream
lores-height | uint | 0 | Height of the second stream
lores-par | bool=1 | 0 | Keep the aspect of the second stream
mode | text | | Sensor mode
viewfinder-mode | text | | Sensor mode for the preview
buffer-count | uint | 0 | Buffers for video
viewfinder-buffer-count | uint | 0 | Buffers for the preview
no-raw | bool=1 | 0 | No raw stream
autofocus-mode | text | default | Autofocus mode
autofocus-range | text | normal | Autofocus range
autofocus-speed | text | normal | Autofocus speed
autofocus-window | text | 0,0,0,0 | Autofocus window
lens-position | text | | Fixed lens position
hdr | text=auto | off | High dynamic range
metadata | text | | File for metadata
metadata-format | text | json | json or txt
flicker-period | text | 0s | Period of flickering light
bitrate,b | text | 0bps | Bits per second
profile | text | | H.264 profile
level | text | | H.264 level
intra,g | uint | 0 | Frames from key frame to key frame
inline | bool=1 | 0 | SPS and PPS before every key frame
codec | text | h264 | h264 or libav (the real one has more)
save-pts | text | | File for timestamps
quality,q | int | 50 | MJPEG quality
listen,l | bool=1 | 0 | Wait for a client to connect
keypress,k | bool=1 | 0 | ENTER pauses and resumes
signal,s | bool=1 | 0 | A signal pauses and resumes
initial,i | text | record | pause or record
split | bool=1 | 0 | New file after each pause
segment | uint | 0 | Milliseconds a file
circular | uint=4 | 0 | Megabytes of circular buffer
frames | uint | 0 | End after this many frames
sync | text | off | Synchronise with another camera
libav-video-codec | text | libx264 | Encoder of libav
libav-video-codec-opts | text | | Options of that encoder
libav-format | text | | Container format
libav-audio | bool=1 | 0 | Record sound as well
audio-codec | text | aac | Audio encoder
audio-source | text | pulse | pulse or alsa
audio-device | text | default | Microphone
audio-channels | uint | 0 | Audio channels
audio-bitrate | text | 32kbps | Audio bits per second
audio-samplerate | uint | 0 | Audio samples per second
alsa-period-size | uint | 2048 | Audio period
av-sync | text | 0us | Offset of the sound
low-latency | bool=1 | 0 | Encode without delay and without B-frames
"""


class Option(NamedTuple):
    name: str
    letter: str
    kind: str
    alone: str | None
    default: str
    text: str


def option_table() -> list[Option]:
    table = []
    for line in OPTIONS.strip().splitlines():
        names, kind, default, text = (part.strip() for part in line.split("|"))
        name, _, letter = names.partition(",")
        kind, has_alone, alone = kind.partition("=")
        table.append(Option(name, letter, kind, alone if has_alone else None, default, text))
    return table


def help_text(table: list[Option]) -> str:
    lines = ["Valid options are:"]
    for option in table:
        left = f"-{option.letter} [ --{option.name} ]" if option.letter else f"--{option.name}"
        left += " arg" if option.alone is None else f" [=arg(={option.alone})]"
        left += f" (={option.default})" if option.default else ""
        lines.append(f"  {left:<46} {option.text}")
    return "\n".join(lines) + "\n"


def parse_options(arguments: list[str], table: list[Option]) -> dict[str, Any]:
    values = {option.name: convert(option, option.default) for option in table}
    remaining = list(arguments)
    while remaining:
        word = remaining.pop(0)
        if word.startswith("--") and len(word) > 2:
            name, has_value, value = word[2:].partition("=")
            option = find_long(name, table)
        elif word.startswith("-") and len(word) > 1:
            option = find_letter(word[1], table)
            value, has_value = word[2:], word[2:]
        else:
            continue  # a stray word, which the real program ignores, too
        if not has_value and option.alone is None:
            if not remaining:
                raise CameraError(f"the required argument for option '--{option.name}' is missing")
            value = remaining.pop(0)
        elif not has_value:
            value = option.alone or ""
        values[option.name] = convert(option, value)
    return values


def find_long(name: str, table: list[Option]) -> Option:
    matches = [option for option in table if option.name.startswith(name)]
    exact = [option for option in matches if option.name == name]
    if len(exact or matches) > 1:
        raise CameraError(f"option '--{name}' is ambiguous and matches " + ", ".join(f"'--{o.name}'" for o in matches))
    if not matches:
        raise CameraError(f"unrecognised option '--{name}'")
    return (exact or matches)[0]


def find_letter(letter: str, table: list[Option]) -> Option:
    for option in table:
        if option.letter == letter:
            return option
    raise CameraError(f"unrecognised option '-{letter}'")


def convert(option: Option, value: str) -> Any:
    try:
        if option.kind == "bool":
            return {"0": False, "1": True, "false": False, "true": True}[value]
        if option.kind == "uint" and not value.isdecimal():
            raise ValueError(value)
        return {"uint": int, "int": int, "float": float, "text": str}[option.kind](value)
    except (KeyError, ValueError):
        raise CameraError(f"the argument ('{value}') for option '--{option.name}' is invalid") from None


def uses_libav(options: dict[str, Any], persona: str) -> bool:
    """libx264 by way of libav, for want of a hardware encoder or because it was asked for."""
    return persona == "pi5" or options["codec"] == "libav"


def check_options(options: dict[str, Any], persona: str) -> None:
    if options["codec"] not in ("h264", "libav"):
        raise CameraError(f"unrecognised codec {options['codec']}")
    if not uses_libav(options, persona):
        return
    if not options["libav-format"] and not re.search(r"^tcp://|264$|^$", options["output"]):
        raise CameraError("libav: cannot allocate output context, try setting with --libav-format")
    if options["libav-format"] not in ("", "h264"):
        raise CameraError("stand-in: --libav-format offers h264 only")


def size_of(options: dict[str, Any]) -> tuple[int, int]:
    width_px, height_px = (options["width"] or DEFAULT_SIZE_PX[0], options["height"] or DEFAULT_SIZE_PX[1])
    return width_px & ~1, height_px & ~1  # YUV420 needs even numbers


def frame_rate_of(options: dict[str, Any]) -> Fraction:
    rate = options["framerate"]
    return Fraction(str(rate)) if rate > 0 else Fraction(DEFAULT_FRAME_RATE)


def bitrate_bps_of(options: dict[str, Any]) -> int:
    """As rpicam-apps reads it: a capital M counts for 1000 only."""
    units = {"": 1, "b": 1, "bps": 1, "k": 1000, "K": 1000, "kbps": 1000, "m": 10**6, "mbps": 10**6, "M": 1000}
    match = re.match(r"([0-9.]+)([a-zA-Z]*)$", options["bitrate"])
    if not match:
        raise CameraError("Invalid bitrate string provided")
    return int(float(match[1]) * units.get(match[2], 1))


def codec_options_of(options: dict[str, Any]) -> dict[str, str]:
    """Of --libav-video-codec-opts "name=value;name=value", those that bear on what is sent; libav ignores none."""
    words = [word.partition("=") for word in options["libav-video-codec-opts"].split(";") if word]
    known = ("tune", "bf", "maxrate", "bufsize", "preset", "thread_type")
    for name, _, _value in words:
        if name not in known:
            raise CameraError(f"libav: stand-in: no encoder option {name}")
    return {name: value for name, _, value in words if name != "thread_type"}


def timeout_s_of(options: dict[str, Any]) -> float:
    units = {"": 1e-3, "ms": 1e-3, "s": 1.0, "sec": 1.0, "min": 60.0, "us": 1e-6, "ns": 1e-9}
    match = re.match(r"([0-9.]+)([a-z]*)$", options["timeout"])
    if not match:
        raise CameraError("Invalid time string provided")
    return float(match[1]) * units.get(match[2], 1e-3)
