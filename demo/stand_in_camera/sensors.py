"""What --list-cameras prints."""

from __future__ import annotations

from stand_in_camera import CAMERA_ID

NO_CAMERAS = "No cameras available!\n"
# Size, pixel format, and modes: size, frames a second, corner and size of the crop.
SENSORS = {
    "imx219": (
        "3280x2464 10-bit RGGB",
        "SRGGB10_CSI2P",
        [
            "640x480 [206.65 fps - (1000, 752)/1280x960 crop]",
            "1640x1232 [41.85 fps - (0, 0)/3280x2464 crop]",
            "1920x1080 [47.57 fps - (680, 692)/1920x1080 crop]",
            "3280x2464 [21.19 fps - (0, 0)/3280x2464 crop]",
        ],
    ),
    "imx477": (
        "4056x3040 12-bit RGGB",
        "SRGGB12_CSI2P",
        [
            "2028x1080 [50.03 fps - (0, 440)/4056x2160 crop]",
            "2028x1520 [40.01 fps - (0, 0)/4056x3040 crop]",
            "4056x3040 [10.00 fps - (0, 0)/4056x3040 crop]",
        ],
    ),
    "imx708": (
        "4608x2592 10-bit RGGB",
        "SRGGB10_CSI2P",
        [
            "1536x864 [120.13 fps - (768, 432)/3072x1728 crop]",
            "2304x1296 [56.03 fps - (0, 0)/4608x2592 crop]",
            "4608x2592 [14.35 fps - (0, 0)/4608x2592 crop]",
        ],
    ),
    "ov5647": (
        "2592x1944 10-bit GBRG",
        "SGBRG10_CSI2P",
        [
            "640x480 [58.92 fps - (16, 0)/2560x1920 crop]",
            "1296x972 [46.34 fps - (0, 0)/2592x1944 crop]",
            "1920x1080 [32.81 fps - (348, 434)/1928x1080 crop]",
            "2592x1944 [15.63 fps - (0, 0)/2592x1944 crop]",
        ],
    ),
}


def list_cameras(sensor: str) -> str:
    size, pixel_format, modes = SENSORS[sensor]
    head = f"    Modes: '{pixel_format}' : "
    listed = ("\n" + " " * len(head)).join(modes)
    return f"Available cameras\n-----------------\n0 : {sensor} [{size}] ({CAMERA_ID})\n{head}{listed}\n\n"
