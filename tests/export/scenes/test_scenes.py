"""The world is what it says: scenes, their pictures, their labels, and questions whose answers the pixels hold."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from refusal import naming

from export.demo.tiny import VOCABULARY
from export.scenes.draw import WHAT, draw, draw_with_labels, make_clip
from export.scenes.make import make_scene
from export.scenes.questions import KINDS, choices, questions
from export.scenes.scene import COLORS, DIRECTIONS, SHAPES, SIZE, SPLITS, Damage, clip_rng


def undamaged(scene):
    return replace(scene, damage=Damage(0, None))


def test_the_same_seed_gives_the_same_clip_and_another_seed_index_or_split_another():
    one, same = (make_clip(clip_rng("test", 5, 1)) for _ in range(2))
    np.testing.assert_array_equal(one.frames, same.frames)
    assert one.questions == same.questions
    assert one.frames.shape == (16, SIZE, SIZE, 3) and one.frames.dtype == np.uint8
    others = [make_clip(clip_rng(*key)) for key in (("test", 6, 1), ("test", 5, 2), ("train", 5, 1), ("validation", 5, 1))]
    assert all(not np.array_equal(one.frames, other.frames) for other in others)
    assert len({other.scene.look for other in others} | {one.scene.look}) == 5


def test_splits_share_no_background():
    looks = [make_scene(clip_rng(split, seed, index), 16).look for split in SPLITS for seed in range(4) for index in range(50)]
    assert len(set(looks)) == len(looks)


def test_every_question_is_of_a_known_kind_its_words_are_known_and_no_answer_dominates():
    answers: dict[str, Counter] = {kind: Counter() for kind in KINDS}
    for seed in range(400):
        rng = clip_rng("test", seed)
        for question in questions(rng, make_scene(rng)):
            answers[question.kind][question.answer] += 1
            assert question.answer in choices(question)
            assert set(f"{question.question} {question.answer}".split()) <= set(VOCABULARY)
    for kind, counts in answers.items():
        assert set(counts) == set(KINDS[kind]), kind
        assert max(counts.values()) / counts.total() < 0.5, kind


def test_colors_and_directions_in_the_answers_are_those_in_the_pixels():
    checked = Counter()
    for seed in range(300):
        rng = clip_rng("validation", seed)
        scene = replace(undamaged(make_scene(rng)), letters=[], flash=None, bar=None)
        if len(scene.things) > 1:
            continue  # one may hide another
        asked = {q.question: q.answer for q in questions(rng, scene)}
        frames = draw(scene)
        for question, color in asked.items():
            shape = question.removeprefix("what color is the ").removesuffix(" ?")
            direction = asked.get(f"which way does the {shape} move ?")
            if shape not in SHAPES or direction is None:
                continue
            shown = (frames == COLORS[color]).all(-1)
            centers = [np.argwhere(frame).mean(0)[::-1] for frame in (shown[0], shown[-1])]
            moved = np.sign(np.rint((centers[1] - centers[0]) / 30))
            assert tuple(moved) == DIRECTIONS[direction], (seed, question)
            checked[direction] += 1
    assert len(checked) == len(DIRECTIONS)


def test_a_panning_camera_moves_what_stands_the_other_way():
    checked = 0
    for seed in range(300):
        rng = clip_rng("validation", seed)
        scene = make_scene(rng)
        if scene.camera == "nowhere":
            continue
        (answer,) = {q.answer for q in questions(rng, scene) if q.kind == "camera"}
        for thing in scene.things:
            moved = thing.path[-1] - thing.path[0]
            assert tuple(-np.sign(np.rint(moved / 20))) == DIRECTIONS[answer]
            checked += 1
    assert checked > 50


def test_labels_say_what_each_pixel_shows():
    seen = Counter()
    for seed in range(40):
        scene = undamaged(make_scene(clip_rng("train", 0, seed)))
        frames, labels = draw_with_labels(scene)
        np.testing.assert_array_equal(frames, draw(scene))
        for n, color in enumerate(COLORS.values(), 1):
            colored = frames[labels[..., 1] == n]
            assert (colored == color).all()
        for t in range(scene.frames):
            expected = {1 + WHAT.index(thing.shape) for thing in scene.things if thing.appears <= t < thing.vanishes}
            expected |= {1 + WHAT.index(letter.name) for letter in scene.letters if letter.start <= t < letter.stop}
            if scene.flash and scene.flash.start <= t < scene.flash.stop:
                expected.add(1 + WHAT.index("star"))
            found = set(np.unique(labels[t, ..., 0]).tolist()) - {0}
            assert found <= expected
            seen["all"] += 1
            seen["found"] += found == expected
    assert seen["found"] / seen["all"] > 0.97  # now and then something hides a whole object


def test_noise_and_jpeg_damage_every_frame():
    scene = make_scene(clip_rng("train", 0, 1))
    clean = draw(undamaged(scene)).astype(int)
    for damage in (Damage(6, None), Damage(0, 35)):
        off = abs(draw(replace(scene, damage=damage)).astype(int) - clean).mean((1, 2, 3))
        assert (off > 0.2).all() and (off < 12).all()


def test_a_clip_too_short_for_its_events_is_refused():
    with pytest.raises(ValueError, match=naming(3, 4)):
        make_scene(clip_rng("test", 0), 3)
