"""Framings: division of the bytes of a connection into payloads, in both directions, without I/O.

A `Framing` is made once for each door and has no state of its connections, so that it is shared by all of them. What a
connection has to remember is the bytes of an incomplete frame, or, for a large one, an `Unfinished`.

    framing = make_framing(read_framing("length:2"), b"\\n", 16384)
    framing.split(b"\\0\\5hello\\0")        # [b"hello"], b"\\0"
    framing.encode([b"hello"])            # b"\\0\\5hello"

`split` is called for each read, and each payload costs it little: it neither checks lengths nor reports malformed frames. It
stops before the first frame that is incomplete or malformed, and the rest that it returns begins there. `unfinished` then finds
out which of the two it is, from the header of the frame. So the frames before it are published in any case, a malformed frame
is found as soon as its header is there, and a frame that claims to be too long costs no memory.
"""

from ._interface import Framing
from ._lines import LineFraming
from ._make import make_framing
from ._unfinished import MalformedFrame, Unfinished

__all__ = ["Framing", "LineFraming", "MalformedFrame", "Unfinished", "make_framing"]
