"""What other people's code calls: every public name, with its arguments."""

import importlib
import inspect
import re

import pytest

import bitlib

SURFACE = """
load(source, head='keep', dtype=None)
export(model, directory, input_range=(-1, 1), freeze=False, jit_compile=False, *, format=None, **options)
port(source, directory, head='keep', input_range=None, freeze=False, jit_compile=False, *, format=None, **options)
checkpoint.Architecture(units, width, num_classes)
checkpoint.assign(model, arrays)
checkpoint.fetch(name)
checkpoint.find(source)
checkpoint.infer(shapes)
checkpoint.layout(architecture)
checkpoint.load(source, head='keep', dtype=None)
checkpoint.prefetch(names, folder)
checkpoint.read(path)
checkpoint.save(model, path)
checkpoint.shapes(path)
datasets.draw(labels, shots, num_test=None, seed=0)
datasets.folder(path, verify=True)
datasets.font_characters(font)
datasets.glyph_classes()
datasets.glyph_masks(characters, fonts)
datasets.glyph_pictures(characters, fonts)
datasets.labelled(name, data_dir=None, columns=None)
datasets.photographs()
datasets.pipeline(pictures, labels, size=None, seed=None)
datasets.render_glyph(character, font='DejaVuSans', size=64)
datasets.splits(name, data_dir=None, shots=0, num_test=None, seed=0, columns=None)
datasets.stream(name, split, size, data_dir=None, context=None)
distill.divergence(teacher, student, temperature=1.0)
distill.match(teacher, student, images, steps=1000, validation=None, seed=0, verbose=1, *, temperature=1.0, weight_decay=0.0001, accumulate=1, checkpoints=None, save_every=None, validate_every=None, tensorboard=None, **how)
distill.plan(crop, steps=1000, resize=None, batch_size=64, learning_rate=0.001, random_flip=True, random_crop=True)
features.extract(model, images, stage='features', pool=True, batch_size=32, verbose=0)
features.few_shot(features, labels, shots, draws=5, num_test=800, seed=0)
features.linear_probe(features, labels, regularization=1.0)
features.nearest(features, queries, count=5)
features.shrink(images, size=8)
finetune.evaluate(model, examples, plan, batch_size=64, *, multi_label=None)
finetune.fit(model, train, plan, validation=None, seed=0, verbose=1, *, multi_label=None, freeze=None, accumulate=1, checkpoints=None, save_every=None, validate_every=None, tensorboard=None, jit_compile=False)
finetune.predict(model, images, plan, batch_size=64)
hyperrule.plan(num_examples, image_size, batch_size=512, base_lr=0.003, steps=None, variant='official', architecture=None, task=None, resize=None, crop=None, random_flip=None, random_crop=None, mixup_alpha=None)
images.batch(sources, card, resolution=None)
images.read(source)
labels.names(class_list)
labels.of_card(card, num_classes)
labels.probabilities(logits, activation='softmax')
labels.top_k(probabilities, class_names, k=5)
reference.convolve(x, kernel, stride=1, xp=numpy)
reference.disagreement(model, arrays, size=64, seed=0)
reference.forward(arrays, images, head=True, xp=numpy)
reference.group_norm_relu(x, gamma, beta, xp=numpy)
reference.root(arrays, images, xp=numpy)
reference.standardize(kernel, xp=numpy)
reference.unit(x, arrays, prefix, stride, xp=numpy)
reference.windows(x, size, stride)
savedmodel.port_all(sources, directory, freeze=False, jit_compile=False)
zoo.card(name)
zoo.names()
zoo.table(*words)
"""  # noqa: E501


def shown(function):
    """Its arguments and their defaults, without annotations."""
    signature = inspect.signature(function)
    plain = [
        argument.replace(annotation=inspect.Parameter.empty) for argument in signature.parameters.values()
    ]
    bare = str(signature.replace(parameters=plain, return_annotation=inspect.Signature.empty))
    return re.sub(r"<module '(\w+)'[^>]*>", r"\1", bare)


@pytest.mark.parametrize("line", SURFACE.split("\n")[1:-1])
def test_a_public_function_takes_what_it_took(line):
    address, _, _ = line.partition("(")
    module, _, name = address.rpartition(".")
    home = importlib.import_module(f"bitlib.{module}") if module else bitlib
    assert address + shown(getattr(home, name)) == line


def test_a_network_is_made_from_units_width_and_classes():
    model = bitlib.model.BiT((1, 1, 1, 1), 0.5, 10)
    assert (model.units, model.width, model.num_classes) == ((1, 1, 1, 1), 0.5, 10)
    assert model.card is None
