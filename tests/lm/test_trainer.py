"""Other people's training loops work on our models: transformers' Trainer and peft's LoRA."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import DataCollatorWithFlattening, Trainer, TrainerCallback, TrainingArguments

from mixerzoo.tasks.lm import MixerForCausalLM
from tests.tolerances import assert_close, assert_identical

from .models import PLAIN, config_of, plain_layers, some_ids

LORA = ["q_proj", "i_proj", "c_proj", "v_proj", "o_proj"]


def fresh(mixer) -> MixerForCausalLM:
    torch.manual_seed(0)
    return MixerForCausalLM(config_of(mixer)).double()


def rows(count: int = 24, length: int = 16) -> list[dict[str, Tensor]]:
    """Returns sequences that count upwards, from anywhere."""
    starts = torch.arange(count) % 40 + 1
    return [
        {"input_ids": start + torch.arange(length) % 19, "labels": start + torch.arange(length) % 19}
        for start in starts
    ]


def arguments(folder: Path, **settings: object) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        learning_rate=3e-2,
        lr_scheduler_type="constant",
        logging_steps=2,
        save_steps=4,
        max_steps=8,
        per_device_train_batch_size=4,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **settings,  # type: ignore[arg-type]
    )


def losses(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@plain_layers
def test_transformers_trainer_trains_it(mixer, tmp_path):
    trainer = Trainer(fresh(mixer), arguments(tmp_path, eval_strategy="steps", eval_steps=8), None, rows(), rows(4))
    trainer.train()
    curve = losses(trainer)
    assert len(curve) == 4 and curve[-1] < 0.8 * curve[0]
    assert trainer.state.log_history[-2]["eval_loss"] < curve[0]


def test_transformers_trainer_goes_on_and_accumulates_and_checkpoints(tmp_path):
    """Its results don't depend on any of these."""
    mixer = PLAIN["hybrid"]

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 4

    plain = Trainer(fresh(mixer), arguments(tmp_path / "plain"), None, rows())
    plain.train()
    Trainer(fresh(mixer), arguments(tmp_path / "stopped"), None, rows(), callbacks=[Stop()]).train()
    resumed = Trainer(fresh(mixer), arguments(tmp_path / "stopped"), None, rows())
    resumed.train(resume_from_checkpoint=True)
    assert_identical(resumed.model.state_dict(), plain.model.state_dict())
    checkpointing = Trainer(
        fresh(mixer), arguments(tmp_path / "checkpointing", gradient_checkpointing=True), None, rows()
    )
    checkpointing.train()
    assert_close(checkpointing.model.state_dict(), plain.model.state_dict())
    halves = arguments(tmp_path / "halves", gradient_accumulation_steps=2)
    halves.per_device_train_batch_size = 2
    accumulating = Trainer(fresh(mixer), halves, None, rows())
    accumulating.train()
    assert_close(accumulating.model.state_dict(), plain.model.state_dict())


def test_transformers_trainer_without_padding(tmp_path):
    """`DataCollatorWithFlattening` packs a batch into one row; the loss is that of the rows apart."""
    data = [{"input_ids": row["input_ids"][:length]} for row, length in zip(rows(8), (16, 3, 9, 12) * 2, strict=True)]
    model = fresh(PLAIN["hybrid"]).eval()
    batch = DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=False)(
        [{"input_ids": item["input_ids"].tolist()} for item in data]
    )
    alone = [
        model(item["input_ids"][None], labels=item["input_ids"][None]).loss * (len(item["input_ids"]) - 1)
        for item in data
    ]
    count = sum(len(item["input_ids"]) - 1 for item in data)
    assert_close(model(**batch).loss, torch.stack(alone).sum() / count)
    trainer = Trainer(model, arguments(tmp_path), DataCollatorWithFlattening(return_flash_attn_kwargs=True), data)
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0]


@plain_layers
def test_lora_trains_adapters_and_nothing_else(mixer, tmp_path):
    import peft

    base = fresh(mixer)
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=LORA, task_type="CAUSAL_LM"))
    trainer = Trainer(model, arguments(tmp_path / "run"), None, rows())
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0]
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    after = {
        name.replace(".base_layer", ""): weight for name, weight in base.state_dict().items() if "lora_" not in name
    }
    assert_identical(after, before)
    ids = some_ids(2, 7)
    model.eval().save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(fresh(mixer), tmp_path / "adapter").eval()
    assert_close(again(ids).logits, model(ids).logits)
    assert model.generate(input_ids=ids, max_new_tokens=3, do_sample=False).shape == (2, 10)
    assert_close(model.merge_and_unload()(ids).logits, again(ids).logits)
