// Are these manifests what Kubernetes, and those who extend it, understand? Every document of the files named
// is read strictly into the types of its API: a key that there is not, or a value of another kind, is a mistake.
// What belongs together is held against each other: selectors and labels, ports, accounts, volumes.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	certmanager "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
)

func main() {
	failed := false
	for _, path := range os.Args[1:] {
		seen, err := file(path)
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", path, err)
			failed = true
			continue
		}
		fmt.Printf("%s: %d objects\n", path, seen)
	}
	if failed || len(os.Args) == 1 {
		os.Exit(1)
	}
}

func file(path string) (int, error) {
	opened, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer opened.Close()
	documents := utilyaml.NewYAMLReader(bufio.NewReader(opened))
	decoder := serializer.NewCodecFactory(known(), serializer.EnableStrict).UniversalDeserializer()
	var objects []runtime.Object
	var mistakes []error
	for number := 1; ; number++ {
		text, err := documents.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return 0, err
		}
		if isEmpty(string(text)) {
			continue
		}
		object, kind, err := decoder.Decode(text, nil, nil)
		if err != nil {
			mistakes = append(mistakes, fmt.Errorf("document %d: %w", number, err))
			continue
		}
		objects = append(objects, object)
		if err := named(object); err != nil {
			mistakes = append(mistakes, fmt.Errorf("document %d, %s: %w", number, kind.Kind, err))
		}
	}
	if len(objects) == 0 && len(mistakes) == 0 {
		return 0, errors.New("there is nothing in it")
	}
	return len(objects), errors.Join(append(mistakes, together(objects)...)...)
}

func isEmpty(text string) bool {
	for _, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line != "" && line != "---" && !strings.HasPrefix(line, "#") {
			return false
		}
	}
	return true
}

func named(object runtime.Object) error {
	of, ok := object.(meta.Object)
	if !ok || of.GetName() == "" {
		return errors.New("it has no name")
	}
	return nil
}

// together holds what belongs together against each other, in one file.
func together(objects []runtime.Object) (mistakes []error) {
	for _, object := range objects {
		deployment, ok := object.(*apps.Deployment)
		if !ok {
			continue
		}
		for _, err := range within(deployment, objects) {
			mistakes = append(mistakes, fmt.Errorf("the Deployment %s: %w", deployment.Name, err))
		}
	}
	for _, object := range objects {
		if service, ok := object.(*core.Service); ok && !anyPod(service, objects) {
			mistakes = append(mistakes, fmt.Errorf("the Service %s leads to no port of a pod here", service.Name))
		}
	}
	return mistakes
}

func within(deployment *apps.Deployment, objects []runtime.Object) (mistakes []error) {
	template := deployment.Spec.Template
	selector, err := meta.LabelSelectorAsSelector(deployment.Spec.Selector)
	if err != nil || selector.Empty() || !selector.Matches(labels.Set(template.Labels)) {
		mistakes = append(mistakes, errors.New("it selects other pods than it makes"))
	}
	volumes := map[string]bool{}
	for _, volume := range template.Spec.Volumes {
		volumes[volume.Name] = true
		if source := volume.ConfigMap; source != nil && !exists(objects, deployment.Namespace, source.Name, isConfigMap) {
			mistakes = append(mistakes, fmt.Errorf("the ConfigMap %s is not here", source.Name))
		}
	}
	containers := append(template.Spec.InitContainers, template.Spec.Containers...)
	for _, container := range containers {
		for _, mount := range container.VolumeMounts {
			if !volumes[mount.Name] {
				mistakes = append(mistakes, fmt.Errorf("there is no volume %s", mount.Name))
			}
		}
	}
	account := template.Spec.ServiceAccountName
	if account != "" && !exists(objects, deployment.Namespace, account, isServiceAccount) {
		mistakes = append(mistakes, fmt.Errorf("the ServiceAccount %s is not here", account))
	}
	return mistakes
}

func isConfigMap(object runtime.Object) bool {
	_, ok := object.(*core.ConfigMap)
	return ok
}

func isServiceAccount(object runtime.Object) bool {
	_, ok := object.(*core.ServiceAccount)
	return ok
}

func exists(objects []runtime.Object, namespace, name string, is func(runtime.Object) bool) bool {
	for _, object := range objects {
		of, ok := object.(meta.Object)
		if ok && is(object) && of.GetNamespace() == namespace && of.GetName() == name {
			return true
		}
	}
	return false
}

// anyPod says whether each port of a service leads to one that a pod of a Deployment here has.
func anyPod(service *core.Service, objects []runtime.Object) bool {
	for _, object := range objects {
		deployment, ok := object.(*apps.Deployment)
		if !ok || deployment.Namespace != service.Namespace {
			continue
		}
		template := deployment.Spec.Template
		if labels.SelectorFromSet(service.Spec.Selector).Matches(labels.Set(template.Labels)) && leads(service, template.Spec) {
			return true
		}
	}
	return false
}

func leads(service *core.Service, pod core.PodSpec) bool {
	has := map[string]bool{}
	for _, container := range append(pod.InitContainers, pod.Containers...) {
		for _, port := range container.Ports {
			has[port.Name] = true
			has[fmt.Sprint(port.ContainerPort)] = true
		}
	}
	for _, port := range service.Spec.Ports {
		target := port.TargetPort.String()
		if target == "0" {
			target = fmt.Sprint(port.Port)
		}
		if !has[target] {
			return false
		}
	}
	return true
}

// known has the types of Kubernetes, cert-manager, the Prometheus operator and SPIRE's controller manager.
func known() *runtime.Scheme {
	for _, add := range []func(*runtime.Scheme) error{certmanager.AddToScheme, monitoring.AddToScheme} {
		if err := add(scheme.Scheme); err != nil {
			panic(err)
		}
	}
	scheme.Scheme.AddKnownTypes(schema.GroupVersion{Group: "spire.spiffe.io", Version: "v1alpha1"}, &ClusterSPIFFEID{})
	return scheme.Scheme
}

// ClusterSPIFFEID is what SPIRE's controller manager knows of one, as far as its resource definition says. Its
// module is not everywhere to be had.
type ClusterSPIFFEID struct {
	meta.TypeMeta   `json:",inline"`
	meta.ObjectMeta `json:"metadata,omitempty"`

	Spec struct {
		Admin                     bool                `json:"admin,omitempty"`
		AutoPopulateDNSNames      bool                `json:"autoPopulateDNSNames,omitempty"`
		ClassName                 string              `json:"className,omitempty"`
		DNSNameTemplates          []string            `json:"dnsNameTemplates,omitempty"`
		Downstream                bool                `json:"downstream,omitempty"`
		FederatesWith             []string            `json:"federatesWith,omitempty"`
		JWTTTL                    string              `json:"jwtTtl,omitempty"`
		NamespaceSelector         *meta.LabelSelector `json:"namespaceSelector,omitempty"`
		PodSelector               *meta.LabelSelector `json:"podSelector,omitempty"`
		SPIFFEIDTemplate          string              `json:"spiffeIDTemplate"`
		TTL                       string              `json:"ttl,omitempty"`
		WorkloadSelectorTemplates []string            `json:"workloadSelectorTemplates,omitempty"`
	} `json:"spec,omitempty"`
}

// DeepCopyObject is asked for by the scheme; nothing here changes what it has read.
func (id *ClusterSPIFFEID) DeepCopyObject() runtime.Object {
	copied := *id
	return &copied
}
