from synthetic_images import image_folder, scene  # noqa: F401
