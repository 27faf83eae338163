"""Recipe -> task."""

from pathlib import Path

import torch

from configs.errors import RecipeError
from configs.recipe import Recipe
from configs.sections.data_section import ImageData
from configs.sections.model_section import GptModel, ResnetModel, UserModel
from data.text.tokenizer import open_tokenizer
from trainer.tasks.classification import ClassificationTask
from trainer.tasks.language import LanguageTask
from trainer.tasks.task_protocol import EngineTask
from trainer.tasks.user_task import UserTask, open_user_task

__all__ = ["build_task", "check_task"]


def check_task(recipe: Recipe) -> None:
    """Raises RecipeError or DataError where model and data do not fit, without building the model."""
    if isinstance(recipe.model, UserModel):
        open_user_task(recipe, recipe.model)
    elif isinstance(recipe.model, ResnetModel):
        _check_batch_norm(recipe, recipe.model)
    elif recipe.data.kind == "tokens":
        _check_vocab(recipe.model, recipe.data.vocab, "data.vocab")
    elif recipe.data.kind == "text":
        needed = open_tokenizer(recipe.data.tokenizer).vocab_size
        _check_vocab(recipe.model, needed, f"data.tokenizer {recipe.data.tokenizer}")


def build_task(recipe: Recipe, copy: Path | None = None) -> EngineTask:
    """The recipe's task with its initial weights, which follow from run.seed alone: equal on every worker.

    `copy`: what the run folder keeps of a file of the user's own. Raises RecipeError where model and data do not fit,
    DataError for a tokenizer that cannot be read, UserCodeError for an error in the user's file.
    """
    if not isinstance(recipe.model, UserModel):
        check_task(recipe)
    # The host's generator, put back afterwards: the weights follow from run.seed alone, whatever drew before.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.run.seed)
        if isinstance(recipe.model, UserModel):
            return UserTask(open_user_task(recipe, recipe.model, copy), recipe.optimizer)
        if isinstance(recipe.model, GptModel):
            return _language(recipe, recipe.model)
        return _classification(recipe, recipe.model)


def _language(recipe: Recipe, config: GptModel) -> LanguageTask:
    seed, optimizer, data = recipe.run.seed, recipe.optimizer, recipe.data
    assert not isinstance(data, ImageData), "the schema refuses images"
    if data.kind == "tokens":
        return LanguageTask(config, optimizer, seed, data.vocab, lambda ids: " ".join(map(str, ids)), [0])
    tokenizer = open_tokenizer(data.tokenizer)
    prompt = [tokenizer.end_of_document]
    return LanguageTask(config, optimizer, seed, tokenizer.vocab_size, tokenizer.decode, prompt)


def _check_vocab(config: GptModel, needed: int, source: str) -> None:
    if config.vocab is not None and config.vocab < needed:
        raise RecipeError(
            f"model.vocab is {config.vocab}, but {source} has ids up to {needed - 1}: "
            f"raise model.vocab to at least {needed}, or drop it"
        )


def _check_batch_norm(recipe: Recipe, config: ResnetModel) -> None:
    assert isinstance(recipe.data, ImageData), "the schema refuses other data"
    # The last stage halves the image five times (imagenet stem) or three times (small), rounding up.
    smallest = 32 if config.stem == "imagenet" else 8
    if recipe.batch.micro == 1 and recipe.data.size <= smallest:
        raise RecipeError(
            f"batch.micro is 1 and data.size {recipe.data.size}: batch normalisation would see one value per channel "
            f"in the last stage: raise batch.micro, or data.size above {smallest}"
        )


def _classification(recipe: Recipe, config: ResnetModel) -> ClassificationTask:
    assert isinstance(recipe.data, ImageData), "the schema refuses other data"
    return ClassificationTask(config, recipe.data, recipe.optimizer)
