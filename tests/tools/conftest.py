from small_pretraining import image_folder, small_config  # noqa: F401  fixtures
