"""What has to be the same on every node, or is named."""

import pytest

from streamactors.deploy.versions import About, about, refuse_another
from streamactors.errors import ClusterUnfit


@pytest.mark.parametrize("field", About._fields[1:])
def test_a_node_with_another_version_is_named(field: str) -> None:
    here = about()
    refuse_another("worker 1", here._replace(node="other"), here, "the coordinator")
    told = rf"worker 1 runs with {field} 0\.9 on node 'other', and the coordinator with {field} .* on node"
    with pytest.raises(ClusterUnfit, match=told):
        refuse_another("worker 1", here._replace(**{"node": "other", field: "0.9"}), here, "the coordinator")
