"""How `make lab` starts JupyterLab: at lesson 00, quiet, and without a request that leaves the machine."""

from pathlib import Path

here = Path(__file__).resolve().parent
course = here.parent.parent
first_lesson = min((course / "lessons").glob("*.ipynb"))

c = get_config()  # noqa: F821  (Jupyter puts it there)
c.ServerApp.root_dir = str(course)
c.ServerApp.allow_root = True  # rented GPU containers have no other user; the server listens on loopback
c.LabApp.default_url = f"/lab/tree/lessons/{first_lesson.name}"
c.LabApp.app_settings_dir = str(here)  # overrides.json: no question about news, no look for updates
c.LabApp.news_url = None
c.LabApp.check_for_updates_class = "jupyterlab.NeverCheckForUpdate"
c.LabApp.extension_manager = "readonly"
