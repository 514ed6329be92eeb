"""Trains the adapter of runs/adapter.yaml: a LoRA on the positive answers of the pairs of `sentiment`.

    pip install peft
    python runs/train_adapter.py
    vsteer run runs/adapter.yaml

The pairs are those that the grid's vector is made from, so that both see the same data. It takes some minutes
on two cores, and what it writes lies in runs/adapter-weights/.
"""

import json
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from vsteer.datasets.builtin import find_data
from vsteer.models import resolve
from vsteer.models.hugging_face import load_model, load_tokenizer

MODEL, FOLDER = "smollm2-135m-instruct", Path(__file__).parent / "adapter-weights"
EPOCHS, BATCH, RATE = 3, 8, 5e-4

torch.manual_seed(0)
folder = resolve(MODEL).model
tokenizer = load_tokenizer(folder)
config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
model = get_peft_model(load_model(folder, dtype=torch.float32), config)
model.print_trainable_parameters()

texts = []
for line in find_data("sentiment", "pairs", Path()).read_text().splitlines():
    pair = json.loads(line)
    asked = [{"role": "user", "content": pair["prompt"]}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    before = tokenizer(prompt, add_special_tokens=False).input_ids
    answer = [*tokenizer(pair["positive"], add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    # only the answer is learned
    texts.append((before + answer, [-100] * len(before) + answer))

optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=RATE)
for epoch in range(EPOCHS):
    losses = []
    order = torch.randperm(len(texts)).tolist()
    for begin in range(0, len(order), BATCH):
        batch = [texts[n] for n in order[begin : begin + BATCH]]
        longest = max(len(ids) for ids, _ in batch)
        ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in batch])
        labels = torch.tensor([labels + [-100] * (longest - len(labels)) for _, labels in batch])
        mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in batch])
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    print(f"epoch {epoch + 1}: loss {sum(losses) / len(losses):.3f}", flush=True)
model.save_pretrained(FOLDER)
print(f"{FOLDER}\nnext: vsteer run runs/adapter.yaml")
