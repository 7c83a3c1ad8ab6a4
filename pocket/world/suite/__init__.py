"""A miniature of the ten zero-shot data sets, each in its own format, of the same world as the training's but with what no
training query shows:

    scenes of five to seven things (a training's have four at most), so every picture is new
    long captions, dialogues, stories
    two changes at once, several right answers, counting and exclusion as conditions
    garments changed over two or three turns
"""
