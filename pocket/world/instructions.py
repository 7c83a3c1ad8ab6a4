"""The pocket world's instructions: our own sentences, four per dataset-task as in M-BEIR."""

from __future__ import annotations

from typing import Final

INSTRUCTIONS: Final[dict[str, tuple[str, str, str, str]]] = {
    "visualnews_task0": (
        "Find the press picture that goes with this report.",
        "Which news picture shows what is reported here?",
        "Show the picture printed beside this news text.",
        "Look for the news photograph that this line describes.",
    ),
    "mscoco_task0": (
        "Find a simple scene that fits this caption.",
        "Which picture shows the scene described?",
        "Look for the scene that this sentence is about.",
        "Show a picture of the following scene.",
    ),
    "fashion200k_task0": (
        "Find the photo of the garment described.",
        "Which picture shows this piece of clothing?",
        "Look for the product that fits the description.",
        "Show the garment that is meant here.",
    ),
    "webqa_task1": (
        "Find a passage that answers the question.",
        "Which paragraph holds the answer?",
        "Look for text that tells what is asked.",
        "Give the passage in which the answer stands.",
    ),
    "edis_task2": (
        "Find the news picture with its headline for this report.",
        "Which headline and picture belong to this news?",
        "Look for the illustrated headline that fits the report.",
        "Show the picture and headline of this event.",
    ),
    "webqa_task2": (
        "Find an illustrated entry that answers the question.",
        "Which captioned picture holds the answer?",
        "Look for a picture with a caption that tells what is asked.",
        "Show the captioned picture that is meant.",
    ),
    "visualnews_task3": (
        "Find the report printed beside this picture.",
        "Which news text belongs to this picture?",
        "Look for the caption of this press photograph.",
        "Give the news line that goes with this picture.",
    ),
    "mscoco_task3": (
        "Find a caption for this scene.",
        "Which sentence describes the scene shown?",
        "Look for a text about this simple scene.",
        "Give a description of this scene.",
    ),
    "fashion200k_task3": (
        "Find the description of this garment.",
        "Which product text fits the picture?",
        "Look for the words that describe this piece of clothing.",
        "Give the product description of what is shown.",
    ),
    "nights_task4": (
        "Find the picture that looks most like this one.",
        "Which picture shows the same scene?",
        "Look for a look-alike of this picture.",
        "Show the picture closest to this one.",
    ),
    "oven_task6": (
        "Find the entry about what is asked in this picture.",
        "Which passage names the thing in question?",
        "Look for the text on the thing asked about.",
        "Give the entry that identifies it.",
    ),
    "infoseek_task6": (
        "Find the passage that answers the question about this picture.",
        "Which text tells what is asked about the thing shown?",
        "Look for the passage with the answer.",
        "Give the text in which the answer about this picture stands.",
    ),
    "fashioniq_task7": (
        "Find a garment like this one with the change asked for.",
        "Which garment fits the picture and the wish?",
        "Look for this garment, changed as described.",
        "Show the garment that this wish leads to.",
    ),
    "cirr_task7": (
        "Find the scene that results from this change.",
        "Which picture shows the scene changed as asked?",
        "Look for this scene with the change described.",
        "Show what the scene is like after the change.",
    ),
    "oven_task8": (
        "Find the illustrated entry about what is asked in this picture.",
        "Which picture and text name the thing in question?",
        "Look for the illustrated text on the thing asked about.",
        "Give the page that identifies it.",
    ),
    "infoseek_task8": (
        "Find the illustrated page that answers the question about this picture.",
        "Which picture and text tell what is asked about the thing shown?",
        "Look for the illustrated passage with the answer.",
        "Give the page on which the answer about this picture stands.",
    ),
}
