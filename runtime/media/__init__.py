"""What a media file shows, decided in one place for `run`, `tokens`, `watch`, `batch` and the server.

    limits.py       what an untrusted file may ask of the decoder
    container.py    open a file with FFmpeg and choose its video stream
    orientation.py  a display matrix applied to a frame
    timeline.py     when each frame is shown, and which T frames are sampled
    decode.py       packets to frames: entries, joints, and what counts as damage
    gif.py          where a GIF ends
    stills.py       pictures and picture animations, which Pillow reads

`runtime.media.clip.sample_frames` puts them together for a clip, `runtime.watch` for a stream.
"""
