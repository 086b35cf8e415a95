from label_efficiency_data import study_data  # noqa: F401  fixture
