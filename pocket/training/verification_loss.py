"""Auxiliary losses that teach a very small model to judge answers.

To judge an answer, a model compares each of its words with what the target shows. Trained with yes or no for whole answers or
for phrases only, the model stayed at chance level. So three of its layers get one task each, in addition to the loss on
replies:

1. *Predict.* The third layer from the end predicts each next word of the correct answer, regardless of the word in the prompt.
2. *Compare.* In the layer above, two heads of each word's last token attend to the state before it, which predicted the word,
   if the word is correct, and otherwise to the prompt's first token. The state then says yes or no for this word.
3. *Judge.* The last layer judges the whole answer.

The second task makes the difference: with a gradient on attention weights the model learns to compare a word with its
prediction in hundreds of steps. These tasks exist only in training; the model is a plain Qwen2.5-VL and is served as one.
"""

from __future__ import annotations

import re
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from pocket.curriculum.example import Judged, Lesson
from pocket.training.train_loop import IGNORE, Batch, Losses, collate, model_inputs, prompts_of

COMPARING_HEADS: Final = 2
_WRONG: Final = 3.0
"""Weight of a wrong word relative to a correct one, because most words are correct."""
_FAR_BELOW: Final = -1e4


def collate_judged(lessons: list[Lesson], processor: Qwen2_5_VLProcessor) -> Batch:
    """Like `collate`, with two more tensors of the shape of `labels`:

    expected: the correct token at each position of a reply, and of the correct answer in a prompt with a judged answer.
    marks: 1 (correct) or 0 (wrong) at the last token of every word of a judged answer, and at the token after the answer.
    """
    batch = collate(lessons, processor)
    expected, marks = batch["labels"].clone(), torch.full_like(batch["labels"], IGNORE)
    prompts, _ = prompts_of(lessons, processor)
    for row, (lesson, prompt) in enumerate(zip(lessons, prompts, strict=True)):
        if lesson.judged is None:
            continue
        expected[row] = IGNORE
        wanted, marked = _judged_places(prompt, lesson.judged, processor)
        for at, token in wanted.items():
            expected[row, at] = token
        for at, right in marked.items():
            marks[row, at] = int(right)
    return batch | {"expected": expected, "marks": marks}


def _judged_places(prompt: str, judged: Judged, processor: Qwen2_5_VLProcessor) -> tuple[dict[int, int], dict[int, bool]]:
    """Returns (position -> the correct token, position -> whether the word that ends there is correct)."""
    tokenizer = processor.tokenizer
    first = prompt.rindex(judged.answer)
    encoded = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True)
    should = tokenizer(
        prompt[:first] + judged.truth + tokenizer.eos_token, add_special_tokens=False, return_offsets_mapping=True
    )
    ends = [stop for _, stop in encoded.offset_mapping]
    past = next(at for at, (start, _) in enumerate(encoded.offset_mapping) if start >= first + len(judged.answer))
    marked = {next(at for at, stop in enumerate(ends) if stop >= first + end): right for end, right in judged.words}
    marked[past] = judged.complete

    begin = next(at for at, stop in enumerate(ends) if stop > first)
    starts, should_start = _starts(judged.answer), _starts(judged.truth)
    wanted: dict[int, int] = {}
    if not judged.right and len(starts) == len(should_start):  # words were swapped: each position has its correct word
        for start, right_start in zip(starts, should_start, strict=True):
            at = next(at for at, stop in enumerate(ends) if stop > first + start)
            right_at = next(at for at, (_, stop) in enumerate(should.offset_mapping) if stop > first + right_start)
            wanted[at] = should.input_ids[right_at]
    else:  # as far as it is right, and the word that should come next
        for at in range(begin, min(len(should.input_ids), past + 1)):
            wanted[at] = should.input_ids[at]
            if should.input_ids[at] != encoded.input_ids[at]:
                break
    return wanted, marked


def _starts(text: str) -> list[int]:
    return [match.start() for match in re.finditer(r"[^\s,:]+", text)]


def judging_losses(model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor) -> Losses:
    """Returns the losses of the three tasks and of the replies. Sets eager attention, because its weights are used."""
    model.set_attn_implementation("eager")
    yes, no = (processor.tokenizer.encode(word, add_special_tokens=False)[0] for word in ("yes", "no"))
    language = model.model.language_model
    telling, comparing = len(language.layers) - 3, len(language.layers) - 2
    caught: dict[str, Tensor] = {}

    def catch(name: str, place: int | None) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            caught[name] = output[place] if isinstance(output, tuple) and place is not None else output

        return hook

    language.layers[telling].register_forward_hook(catch("telling", 0))
    language.layers[comparing].register_forward_hook(catch("comparing", 0))
    language.layers[comparing].self_attn.register_forward_hook(catch("weights", 1))
    words = torch.zeros(model.lm_head.weight.shape[0])
    words[[yes, no]] = _FAR_BELOW  # what should stand here is never a judgement

    def losses(batch: Batch) -> dict[str, Tensor]:
        last = model.model(**model_inputs(batch)).last_hidden_state
        labels, expected, marks = batch["labels"], batch["expected"], batch["marks"]
        found = {"expected": _next_token(language.norm(caught["telling"]), expected, model.lm_head, words.to(last.device))}
        marked = marks != IGNORE
        judged = marked.any(1, keepdim=True).expand_as(labels)
        if bool(marked.any()):
            right = marks[marked] == 1
            said = model.lm_head(language.norm(caught["comparing"])[marked]).float()
            margin = said[:, yes] - said[:, no]
            found["words"] = _weighed(nn.functional.softplus(torch.where(right, -margin, margin)), right)
            found["attention"] = _weighed(_looked_elsewhere(caught["weights"], marked, right), right)
            # twice: half of its labels are ends of turn
            found["judgement"] = 2 * _next_token(last, labels.masked_fill(~judged, IGNORE), model.lm_head)
        if not bool(judged.all()):
            found["loss"] = _next_token(last, labels.masked_fill(judged, IGNORE), model.lm_head)
        return found

    return losses


def _next_token(states: Tensor, labels: Tensor, head: nn.Module, added: Tensor | None = None) -> Tensor:
    scored = labels[:, 1:] != IGNORE
    logits = head(states[:, :-1][scored]).float()
    return nn.functional.cross_entropy(logits if added is None else logits + added, labels[:, 1:][scored])


def _looked_elsewhere(weights: Tensor, marked: Tensor, right: Tensor) -> Tensor:
    """Returns -log of the attention on the correct position, per mark. weights (rows, heads, length, length)."""
    rows, places = marked.nonzero(as_tuple=True)
    goal = torch.where(right, places - 1, torch.zeros_like(places))
    looked = weights[rows, :COMPARING_HEADS, places, goal].float()
    return -(looked + 1e-6).log().mean(1)


def _weighed(losses: Tensor, right: Tensor) -> Tensor:
    weights = torch.where(right, 1.0, _WRONG)
    return (losses * weights).sum() / weights.sum()
