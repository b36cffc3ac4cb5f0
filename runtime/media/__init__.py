"""Decoding media files and streams; the one place that decides which frames a file shows and what counts as damage.

    limits.py       limits for untrusted files
    container.py    open a file with FFmpeg and choose its video stream
    orientation.py  apply a display matrix to a frame
    timeline.py     when each frame is shown, and which T frames are sampled
    decode.py       packets to frames: where decoding starts, and what counts as damage
    gif.py          where a GIF was cut off
    stills.py       pictures and picture animations, read by Pillow

`runtime.media.clip.sample_frames` puts them together for a clip, `runtime.watch` for a stream.
"""
