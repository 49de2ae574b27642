"""What the Raspberry Pi's firmware says about its power supply and its heat."""

import re

from guardianberry.machine import output_of

# The bits of `vcgencmd get_throttled`; 16 bits higher the same, at some time since the boot.
_BITS = {0: "under-voltage", 1: "clock capped", 2: "throttled", 3: "too hot"}


def power_faults() -> list[str] | None:
    """Each fault with "now" or "since the boot"; None where nobody knows, as on other machines. Takes up to 5 s."""
    match = re.search(r"throttled=0x([0-9a-fA-F]+)", output_of("vcgencmd", "get_throttled") or "")
    if match is None:
        return None
    bits = int(match[1], 16)
    now = [text for bit, text in _BITS.items() if bits >> bit & 1]
    earlier = [text for bit, text in _BITS.items() if bits >> (bit + 16) & 1 and text not in now]
    return [*(f"{text} now" for text in now), *(f"{text} since the boot" for text in earlier)]
