"""Word lists of the screens."""

from __future__ import annotations

from typing import Final


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


STOP_WORDS: Final = _words(
    """a about above after again against all also am an and any are as at be because been before being below between both but
    by can could did do does doing down during each few for from further get give had has have having he her here hers him
    his how i if in into is it its itself just me more most my no nor not now of off on once one only or other our out
    over own please same she should show shows showing so some such than that the their them then there these they this
    those through to too under until up very was we were what when where which while who whom why will with would you your
    find image images photo photos picture pictures retrieve query text caption provided given"""
)
"""English function words, and words that occur in every retrieval request."""

ENGLISH: Final = _words(
    """the a an of and or to in on at by with from is are was were be it its this that these those which who what no not as for
    there has have their than into same one two both"""
)

FOREIGN: Final = {
    "French": _words("le la les des une est dans avec pour sur qui que pas plus sont aux ce cette mais ou où il elle nous"),
    "Spanish": _words("el la los las una es en con por para que del se su más como pero este esta son muy hay sobre"),
    "German": _words("der die das und ist ein eine nicht mit auf den dem von zu im für sich auch wird sind bei aus einer"),
    "Italian": _words("il lo la gli una è di che con per del della sono nel alla più non come questo questa anche"),
    "Portuguese": _words("o os uma é em com por para que do da dos das não mais como mas este esta são ao pelo"),
    "Dutch": _words("de het een en van ik niet met op voor zijn dat die aan er ook maar naar bij wordt deze"),
}
"""Function words that identify a language; those that are also English are not counted."""
