"""Puts `hydra/sweeper/ax.yaml` on every app's search path."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class MLRCAxSearchPath(SearchPathPlugin):
    """A file on the search path wins over the config store, also where upstream's plugin is installed."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the plugin's own config package."""
        search_path.append(provider="mlrc-ax-sweeper", path="pkg://hydra_plugins.mlrc_ax_sweeper.conf")
