"""Generated video clips with questions whose answers are known: what quantisation is calibrated on, and the demo checkpoint trained on.

A clip shows one to three objects of different shape and colour that appear one after another, stand or move, overlap, change
colour or vanish, before a background with texture and clutter. In some clips the camera pans instead; a grey bar may pass in front;
a letter may be shown for a while, in two sizes; a star may flash for one frame or two. Noise and JPEG damage of several strengths
lie on top.

    clip = make_clip(clip_rng("train", 0, index), frames)    frames uint8 [T, S, S, 3], questions, and the scene behind them

    scene.py    what happens, as plain numbers       make.py         draws it from a random generator
    draw.py     its pictures and labels              questions.py    what can be asked about it
"""
