{{- define "ltxtrain.labels" -}}
app.kubernetes.io/name: ltxtrain
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- /* Of one part: what selectors match. Called with (list $ "part"). */ -}}
{{- define "ltxtrain.selector" -}}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "ltxtrain.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "ltxtrain.rayCluster" -}}
{{ .Release.Name }}-ray
{{- end }}

{{- /* The name that KubeRay gives to the head's Service. */ -}}
{{- define "ltxtrain.rayHead" -}}
{{ .Release.Name }}-ray-head-svc
{{- end }}

{{- define "ltxtrain.storeEndpoint" -}}
{{ if .Values.store.bundled }}{{ .Release.Name }}-store:9000{{ else }}{{ required "store.endpoint: name an S3 store, or set store.bundled=true" .Values.store.endpoint }}{{ end }}
{{- end }}

{{- /* Of containers: the image's user, and no more than it needs. */ -}}
{{- define "ltxtrain.containerSecurity" -}}
allowPrivilegeEscalation: false
capabilities: { drop: [ALL] }
readOnlyRootFilesystem: true
{{- end }}

{{- define "ltxtrain.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: { type: RuntimeDefault }
{{- end }}

{{- /* Files of secrets, in the form that docker/entrypoint and the settings LTXTRAIN_*_FILE expect them in. */ -}}
{{- define "ltxtrain.secretsVolume" -}}
{{- $ := index . 0 -}}
name: secrets
projected:
  defaultMode: 0440
  sources:
    - secret:
        name: {{ $.Values.secret }}
        items:
          {{- range index . 1 }}
          - { key: {{ . }}, path: {{ . }} }
          {{- end }}
    {{- if index . 2 }}
    - secret:
        name: {{ $.Values.raySecret }}
        items:
          - { key: auth_token, path: ray_token }
    {{- end }}
{{- end }}

{{- define "ltxtrain.tlsEnv" -}}
- { name: LTXTRAIN_TLS_CERT, value: /run/tls/tls.crt }
- { name: LTXTRAIN_TLS_KEY, value: /run/tls/tls.key }
- { name: LTXTRAIN_TLS_ROOT, value: /run/tls/ca.crt }
{{- end }}

{{- define "ltxtrain.modelsVolume" -}}
name: models
persistentVolumeClaim:
  claimName: {{ .Values.model.volume.existingClaim | default (printf "%s-models" .Release.Name) }}
{{- end }}

{{- /* Environment of whatever loads models. */ -}}
{{- define "ltxtrain.modelEnv" -}}
- { name: HF_HOME, value: /models }
{{- if .Values.model.hubSecret }}
- name: HF_TOKEN
  valueFrom: { secretKeyRef: { name: {{ .Values.model.hubSecret }}, key: HF_TOKEN } }
{{- end }}
{{- end }}
