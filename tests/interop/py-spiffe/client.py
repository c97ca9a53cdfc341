"""What a workload does with the Workload API, by py-spiffe. The argument names a file to make once the
X.509 stream is watched and an identity may be withdrawn."""

import pathlib
import queue
import sys

from spiffe import JwtSvid, TrustDomain, WorkloadApiClient
from spiffe.errors import PySpiffeError

ID = "spiffe://example.org/client"
DOMAIN = TrustDomain("example.org")
PATIENCE = 15


def step(text):
    print(f"ok   py-spiffe: {text}", flush=True)


def check(condition, text):
    if not condition:
        sys.exit(f"FAIL py-spiffe: {text}")


def check_context(context):
    svid = context.default_svid
    check(str(svid.spiffe_id) == ID, f"the SPIFFE ID is {svid.spiffe_id}")
    bundle = context.x509_bundle_set.get_bundle_for_trust_domain(DOMAIN)
    (root,) = bundle.x509_authorities
    svid.leaf.verify_directly_issued_by(root)
    return svid


def main():
    with WorkloadApiClient(default_timeout=PATIENCE) as client:
        svid = check_context(client.fetch_x509_context())
        step(f"X509-SVID, serial {svid.leaf.serial_number:x}, verified by the bundle")

        bundles = client.fetch_x509_bundles()
        check(bundles.get_bundle_for_trust_domain(DOMAIN), "no bundle of the own trust domain")
        step("X.509 bundle")

        token = client.fetch_jwt_svid({"billing"})
        check(str(token.spiffe_id) == ID, f"the subject is {token.spiffe_id}")
        jwt_bundle = client.fetch_jwt_bundles().get_bundle_for_trust_domain(DOMAIN)
        JwtSvid.parse_and_validate(token.token, jwt_bundle, {"billing"})
        step("JWT-SVID, verified by the JWT bundle")

        client.validate_jwt_svid(token.token, "billing")
        try:
            client.validate_jwt_svid(token.token, "somebody-else")
            check(False, "a JWT-SVID is valid for a stranger")
        except PySpiffeError:
            step("JWT-SVID validated by the issuer, and refused for another audience")

        events = queue.Queue()
        watch = client.stream_x509_contexts(events.put, events.put, retry_connect=False)
        serials = set()
        while len(serials) < 3:
            event = events.get(timeout=PATIENCE)
            check(not isinstance(event, Exception), f"the stream failed: {event!r}")
            serials.add(check_context(event).leaf.serial_number)
        step("two rotations seen on the stream")

        pathlib.Path(sys.argv[1]).touch()
        while not isinstance(event, Exception):
            event = events.get(timeout=PATIENCE)
        check("denied" in str(event).lower(), f"not withdrawn but: {event!r}")
        step("withdrawn on the open stream")
        watch.cancel()


main()
