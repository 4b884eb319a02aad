#!/usr/bin/env python3
"""Runs scripts/sbom on a build, and checks every member of its output against SPDX 2.3, the files and dpkg.

sbom_test.py BUILD-FOLDER
"""
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
SKIPPED = 77
ELEMENT = r"SPDXRef-[A-Za-z0-9.-]+"

# The members that each kind of element must have, and a pattern for each value.
DOCUMENT = {
    "spdxVersion": r"SPDX-2\.3",
    "dataLicense": r"CC0-1\.0",
    "SPDXID": r"SPDXRef-DOCUMENT",
    "name": r"vmm-\d+\.\d+\.\d+",
    "documentNamespace": r"https://[^#\s]+-[0-9a-f-]{36}",
    "creationInfo": None,
    "packages": None,
    "files": None,
    "relationships": None,
}
PACKAGE = {
    "SPDXID": ELEMENT,
    "name": r"\S+",
    "versionInfo": r"\d\S*",
    "supplier": r"Organization: \S.*",
    "downloadLocation": r"NOASSERTION",
    "licenseConcluded": r"NOASSERTION",
    "licenseDeclared": r".+",
    "copyrightText": r"NOASSERTION",
}
FILE = {"SPDXID": ELEMENT, "fileName": r"\./\S+", "licenseConcluded": r"NOASSERTION", "copyrightText": r"NOASSERTION"}
RELATIONSHIP = {
    "spdxElementId": ELEMENT,
    "relatedSpdxElement": ELEMENT,
    "relationshipType": r"DESCRIBES|CONTAINS|STATIC_LINK|DYNAMIC_LINK|GENERATED_FROM",
}
EXTRACTED = {"licenseId": r"LicenseRef-[A-Za-z0-9.-]+", "name": r".+", "extractedText": r"(?s).+"}

failed = 0


def check(name, good, found=""):
    global failed
    failed += not good
    print(f"{'PASS' if good else 'FAIL'} {name}" + ("" if good else f": {found}"))


def sbom(*arguments, **environment):
    return subprocess.run(
        [ROOT / "scripts/sbom", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )


def lacking(element, members):
    """Members that the element lacks, or whose value does not match."""
    return [
        f"{name}={element.get(name)!r}" for name, pattern in members.items()
        if name not in element or pattern is not None and not re.fullmatch(pattern, element[name])
    ]  # fmt: skip


def is_expression(text):
    """True if this consists of licences joined by AND and OR, with balanced parentheses."""
    names = r"(?:LicenseRef-[A-Za-z0-9.-]+|[A-Za-z0-9.-]+)(?: WITH [A-Za-z0-9.-]+)?"
    joined = rf"{names}(?: (?:AND|OR) {names})*"
    while (shorter := re.sub(rf"\({joined}\)", "Name", text)) != text:
        text = shorter
    return re.fullmatch(joined, text) is not None


def check_document(document, tree):
    check("the document has what it must have", not lacking(document, DOCUMENT), lacking(document, DOCUMENT))
    created = document["creationInfo"]
    good = re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", created["created"]) and re.fullmatch(r"Tool: \S+", created["creators"][0])
    check("it says when and by what it was made", bool(good), created)

    packages, files, relationships = document["packages"], document["files"], document["relationships"]
    extracted = document.get("hasExtractedLicensingInfos", [])
    for kind, elements, members in (
        ("package", packages, PACKAGE), ("file", files, FILE), ("relationship", relationships, RELATIONSHIP), ("licence", extracted, EXTRACTED)
    ):  # fmt: skip
        bad = [(element.get("name", element), lacking(element, members)) for element in elements if lacking(element, members)]
        check(f"each {kind} has what it must have", not bad and (elements or kind == "licence"), bad[:3])

    ids = ["SPDXRef-DOCUMENT", *(element["SPDXID"] for element in [*packages, *files])]
    check("each name is given once", len(set(ids)) == len(ids), sorted(name for name in ids if ids.count(name) > 1))
    ends = {relationship[end] for relationship in relationships for end in ("spdxElementId", "relatedSpdxElement")}
    check("relationships name all there is, and nothing else", ends == set(ids), ends ^ set(ids))

    expressions = [package["licenseDeclared"] for package in packages]
    bad = [text for text in expressions if text != "NOASSERTION" and not is_expression(text)]
    check("licences are expressions of SPDX", not bad, bad)
    named = set(re.findall(r"LicenseRef-[A-Za-z0-9.-]+", " ".join(expressions)))
    listed = {licence["licenseId"] for licence in extracted}
    check("licences that SPDX has no name for are listed with their text", named == listed, named ^ listed)

    bad = []
    for file in files:
        content = (tree / file["fileName"]).read_bytes()
        sums = {entry["algorithm"]: entry["checksumValue"] for entry in file["checksums"]}
        if sums != {"SHA1": hashlib.sha1(content).hexdigest(), "SHA256": hashlib.sha256(content).hexdigest()}:
            bad.append(file["fileName"])
    check("checksums are those of the files", not bad, bad)
    ours = next(package for package in packages if package["name"] == "vmm")
    sums = sorted(hashlib.sha1((tree / file["fileName"]).read_bytes()).hexdigest() for file in files)
    code = hashlib.sha1("".join(sums).encode()).hexdigest()
    check("the package's verification code is that of its files", ours["packageVerificationCode"]["packageVerificationCodeValue"] == code)

    bad = []
    for package in packages:
        if package is ours:
            continue
        installed = subprocess.run(["dpkg-query", "-W", "-f", "${Version}\n", package["name"]], capture_output=True, text=True).stdout
        purl = [reference["referenceLocator"] for reference in package["externalRefs"] if reference["referenceType"] == "purl"]
        if package["versionInfo"] not in installed.split("\n") or not re.fullmatch(r"pkg:deb/\w+/\S+@\S+\?arch=\w+&distro=\S+", purl[0]):
            bad.append((package["name"], package["versionInfo"], installed, purl))
    check("versions are those that are installed", not bad, bad)


def check_contents(document):
    names = {element["SPDXID"]: element.get("name", element.get("fileName")) for element in [*document["packages"], *document["files"]]}

    def of(file, *kinds):
        return {
            names[relationship["relatedSpdxElement"]] for relationship in document["relationships"]
            if names.get(relationship["spdxElementId"], "").endswith(file) and relationship["relationshipType"] in kinds
        }  # fmt: skip

    def lacks(file, kinds, patterns):
        found = of(file, *kinds)
        return [pattern for pattern in patterns if not any(re.fullmatch(pattern, name) for name in found)]

    headers = [r"libcli11-dev", r"libfmt-dev", r"libspdlog-dev", r"nlohmann-json3-dev", r"libboost.*-dev", r"libstdc\+\+-.*-dev"]
    check("vmm has the headers that are compiled into it", not lacks("/vmm", ["GENERATED_FROM"], headers), of("/vmm", "GENERATED_FROM"))
    libraries = [r"liburing.*", r"libzstd.*", r"libfdt.*", r"libc6.*", r"libstdc\+\+.*"]
    for file in ("/vmm", next(name for name in names.values() if "/libvmm.so." in name)):
        missing = lacks(file, ["STATIC_LINK", "DYNAMIC_LINK"], libraries)
        check(f"{os.path.basename(file)} has the libraries that it is linked with", not missing, missing)
    check("vmm-tls has OpenSSL", not lacks("/vmm-tls", ["DYNAMIC_LINK"], [r"libssl.*"]), of("/vmm-tls", "DYNAMIC_LINK"))
    others = {name for name in names.values() if name.startswith("./") and not name.endswith("/vmm-tls")}
    bad = [file for file in others if any("libssl" in name for name in of(file, "STATIC_LINK", "DYNAMIC_LINK", "GENERATED_FROM"))]
    check("nothing else has OpenSSL", not bad, bad)
    check("vmm has the built-in guest in it", any(name.endswith("/guest.elf") for name in of("/vmm", "CONTAINS")))


def main():
    if shutil.which("dpkg-query") is None:
        print("SKIPPED: the packages of this system are not Debian's")
        return SKIPPED
    build = pathlib.Path(sys.argv[1])
    written = sbom(build, SOURCE_DATE_EPOCH="1700000000")
    if written.returncode != 0:
        print(f"FAIL scripts/sbom ended with {written.returncode}: {written.stderr}")
        return 1
    check("it complains of nothing", not written.stderr, written.stderr)
    document = json.loads(written.stdout)
    check_document(document, build)
    check_contents(document)
    check("the date is the one that was asked for", document["creationInfo"]["created"] == "2023-11-14T22:13:20Z", document["creationInfo"])
    check("the same build has the same document", sbom(build, SOURCE_DATE_EPOCH="1700000000").stdout == written.stdout)

    with tempfile.TemporaryDirectory() as folder:
        tree = pathlib.Path(folder)
        for file in document["files"]:
            name = pathlib.Path(file["fileName"]).name
            place = tree / {"vmm": "usr/bin", "vmm-tls": "usr/libexec/vmm", "guest.elf": "usr/share/vmm"}.get(name, "usr/lib") / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(name.encode())
        installed = json.loads(sbom(build, "--installed", tree).stdout)
        names = {file["fileName"] for file in installed["files"]}
        check("files of an installation have their names there", "./usr/bin/vmm" in names and len(names) == len(document["files"]), names)
        check_document(installed, tree)
        nothing = sbom(tree)
        check("a folder that is no build is refused in one line", nothing.returncode == 1 and not nothing.stdout
              and nothing.stderr.count("\n") == 1, nothing.stderr)  # fmt: skip
        (tree / "usr/bin/vmm").unlink()
        nothing = sbom(build, "--installed", tree)
        check("a tree without our files is refused in one line", nothing.returncode == 1 and not nothing.stdout
              and nothing.stderr.count("\n") == 1, nothing.stderr)  # fmt: skip
    print(f"{failed} failed")
    return 1 if failed else 0


sys.exit(main())
