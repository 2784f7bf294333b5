"""The PEFT tuner NOAH: config, model, layers, prompt modules. It knows no image, no run and no search."""
