from small_pretraining import image_folder  # noqa: F401
